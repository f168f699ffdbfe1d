"""Who watches a command."""
