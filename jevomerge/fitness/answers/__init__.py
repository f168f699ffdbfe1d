"""Text -> score."""
