"""Execute runs as processes of this machine."""
