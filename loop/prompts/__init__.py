"""Prompts and preference data: sources, sets, chat templates."""
