"""What every room stands on: errors, atomic files, signals, durations, HTML escaping."""
