"""Determine the runs that a spec needs, what they lack on this machine, and what they will cost."""
