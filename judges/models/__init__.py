"""Judges that are models: reward models, classifiers, log-probabilities."""
