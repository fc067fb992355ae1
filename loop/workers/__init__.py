"""Worker processes: the pool on the driver side and the services that run inside."""
