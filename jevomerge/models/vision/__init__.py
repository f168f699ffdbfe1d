"""Eyes: towers that turn pictures into features, and what all models that see share."""
