"""What is searched: a problem and its candidates, one file a kind."""
