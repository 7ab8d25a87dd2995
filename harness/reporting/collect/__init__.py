"""From records to comparable values: results, comparisons, curves, factors."""
