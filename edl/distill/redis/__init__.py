"""Where the original had its Redis kind of discovery: says what has taken its place."""
