"""Execute runs as jobs of a SLURM cluster."""
