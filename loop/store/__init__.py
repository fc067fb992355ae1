"""A run on disk: folders, files, manifests, models and the verdict cache."""
