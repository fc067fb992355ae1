"""Judges of another package, found by prefloop through its entry points."""
