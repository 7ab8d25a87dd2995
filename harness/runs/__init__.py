"""A run: its identity, its folder in the store, its request, record and attempts, and what it still lacks."""
