"""What a terminal or a notebook shows of a run. Reads run folders, changes nothing."""
