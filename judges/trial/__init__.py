"""Testing a judge: its own examples, and labelled data."""
