"""A run's identity, its folder in the store, its request, record and attempts, and what it is still missing."""
