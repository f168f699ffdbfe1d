"""What YAML says of merge methods, without the methods, which take seconds to import."""

SEMANTICS = ("mergekit", "paper")  # whose a method's are, where these two differ
