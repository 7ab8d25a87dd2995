"""What one attempt at a run does on the machine that trains it."""
