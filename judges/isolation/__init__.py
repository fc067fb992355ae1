"""Judges that run foreign code, in child processes that can be killed."""
