"""Search strategies: ask and tell over the unit box."""
