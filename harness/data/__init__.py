"""From a data spec to samples: generation of the embedded worlds, indexing, reading, order and batches of images.

Only `loader` imports torch; the head asks `inspection` what a data set is, which imports no more than it needs.
"""
