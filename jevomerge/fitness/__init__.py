"""What a good model does: tasks, and how candidates are scored on them."""
