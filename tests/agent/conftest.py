"""Lets the test modules here import `helpers` and the server tests' `scripted` engine."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "server"), str(Path(__file__).parents[1])]
