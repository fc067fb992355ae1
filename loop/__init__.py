# A package of prefloop; loop/cli/start.py looks for this line.
"""Runs campaigns: the order of the stages, the run folder, engines, pairing, promotion and the command line.

Passes prompts and responses to `judges` and preference data to `trainer`; neither imports it. Importing this package
imports no torch, transformers, vllm or datasets: what needs them runs in worker processes.
"""

__version__ = "0.1.0"
