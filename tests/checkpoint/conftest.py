import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "modeling"))

from small_detectors import zoo_cfg

__all__ = ["zoo_cfg"]
