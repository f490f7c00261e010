"""Paddle Serving's protocols as plain functions between bytes and values: no socket, no Paddle."""
