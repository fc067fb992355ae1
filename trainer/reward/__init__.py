"""Training a reward model on pairs."""
