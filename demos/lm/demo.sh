#!/usr/bin/env bash
# The demo of language models from nothing, on one machine and its CPU: less than six minutes on two cores.
exec python -W ignore "$(dirname "$0")/demo.py" "$@"
