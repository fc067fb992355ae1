"""Rule judges: answers and form, checked without a model."""
