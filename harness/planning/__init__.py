"""From a spec to the runs it needs, what is missing on this machine, and what it will cost."""
