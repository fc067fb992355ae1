"""What a terminal or a Python program shows of a run. Reads run folders, changes nothing."""
