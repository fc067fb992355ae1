"""Room loop, the stages as the driver sees them, one file each, in the order of an iteration."""
