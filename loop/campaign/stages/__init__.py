"""The stages of an iteration, one file each, as the driver runs them."""
