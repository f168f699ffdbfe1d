"""LLaVA-1.5 and LLaVA-NeXT: a vision tower, two linear maps, and any of our decoders."""
