"""CLIP: its text encoder, which image pipelines have too, and both of its towers as one model."""
