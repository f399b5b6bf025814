"""Held-out measurements with intervals."""
