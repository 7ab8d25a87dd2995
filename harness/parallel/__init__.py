"""Train or evaluate one run with several processes."""
