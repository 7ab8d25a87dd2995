"""Everything that needs a GPU, measured by `python -m benchmarks.gpu`."""
