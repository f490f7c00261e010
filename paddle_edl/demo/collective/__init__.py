"""Where the original had a demonstration of elastic jobs: says what has taken its place."""
