"""Shares the tiny models of tests/language."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "language"))
