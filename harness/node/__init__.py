"""Execute one attempt at a run on the machine that trains it."""
