"""How the families of decoders spell their configs; one file for families that are alike."""
