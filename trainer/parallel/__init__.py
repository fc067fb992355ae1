"""Several training processes: launching them and splitting a step over ranks."""
