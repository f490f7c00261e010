"""Where the original had discovery: says what has taken its place."""
