"""The ``edl`` command."""
