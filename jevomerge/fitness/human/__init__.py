"""People as judges: what they are asked, what they answer, and what that says of candidates."""
