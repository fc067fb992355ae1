"""The Python interface: what `from loop import ...` offers (docs/api.md)."""
