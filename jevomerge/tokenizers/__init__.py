"""Everything that needs a tokenizer's files: vocabularies made one, chat templates, stop strings."""
