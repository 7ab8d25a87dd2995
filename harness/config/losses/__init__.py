"""The specs of single losses, by what they compare. `harness.config.loss` has their union, and sums of them."""
