"""Search: policies, studies and the driver."""
