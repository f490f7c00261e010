"""Where the original had its launcher: says what has taken its place."""
