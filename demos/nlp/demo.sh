#!/usr/bin/env bash
# The demo of Chinese reviews from nothing, on one machine and its CPU: two to three minutes on two cores.
exec python -W ignore "$(dirname "$0")/demo.py" "$@"
