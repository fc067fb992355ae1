"""Several judges combined into one verdict."""
