"""The original's program of this name: says what has taken its place."""

from edl._original import answer

if __name__ == "__main__":
    answer("distill.redis.balance_server")
