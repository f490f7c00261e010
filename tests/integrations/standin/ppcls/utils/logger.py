"""A logger that is there once somebody has made it."""

import logging

_loggers = []


def init_logger(name="ppcls"):
    _loggers[:] = [logging.getLogger(name)]


def warning(message):
    _loggers[0].warning(message)
