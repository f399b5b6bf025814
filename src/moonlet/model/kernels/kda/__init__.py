"""Kimi Delta Attention: `naive.py` is the recurrence, `chunk.py` the same function in tiles of 16."""
