"""The tables of docs/results.md from the bundles in docs/results: `make results`."""
