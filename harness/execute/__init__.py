"""Carrying a plan out: which runs are ready, where they run, how each of them ended."""
