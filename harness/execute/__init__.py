"""Carry out a plan: find the runs that are ready, start them as processes or jobs, and record how each one ended."""
