"""People as judges: the labelling page and their labels."""
