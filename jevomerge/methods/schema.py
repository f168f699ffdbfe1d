"""What YAML says of merge methods, without the methods, which take seconds to import."""

SEMANTICS = ("mergekit", "paper", "peft")  # whose a method's are, where these two differ
