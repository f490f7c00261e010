"""Connections to teachers, and whether they work. What a student costs is here: no server, no
Paddle.
"""
