"""Lets the test modules here import the server tests' `scripted` engine."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
