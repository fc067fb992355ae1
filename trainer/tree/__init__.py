"""Prompt trees: each prompt and each response encoded once, under a tree attention mask."""
