"""Data sets that the harness draws itself, with their truth."""
