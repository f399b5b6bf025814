"""The terminal agent. It knows a model only over HTTP (`client.py`), runs its tool calls (`loop.py`, `tools.py`) and
shows both (`terminal.py`)."""
