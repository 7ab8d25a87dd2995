"""Several processes that train or evaluate one run together."""
