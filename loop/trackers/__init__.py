"""Experiment trackers (TensorBoard, W&B and others), run in a process of their own."""
