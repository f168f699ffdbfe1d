"""Files <-> pytrees: Hugging Face folders in, Hugging Face folders out, bit for bit."""
