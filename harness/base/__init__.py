"""Shared foundations: errors, atomic files, signals, durations, HTML escaping."""
