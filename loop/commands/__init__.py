"""What the commands other than run, status, show and report do."""
