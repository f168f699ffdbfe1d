"""One decoder for the Llama-like world."""
