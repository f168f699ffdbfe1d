"""The search: set up, run, written down, resumed."""
