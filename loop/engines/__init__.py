"""Engines that sample responses, behind one protocol (base.py): vLLM and transformers."""
