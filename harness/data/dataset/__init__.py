"""Samples by number: index, pictures, order, captions of a batch, transforms and loading."""
