"""Demonstrations that ``edl demo`` runs."""
