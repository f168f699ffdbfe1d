"""Idefics3 and SmolVLM: SigLIP, patches folded into channels, one linear map, and any of our decoders."""
