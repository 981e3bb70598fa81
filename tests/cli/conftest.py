import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "inference"))

from random_models import checkpoint, config, exported, text_cache, text_cache_folder

__all__ = ["checkpoint", "config", "exported", "text_cache", "text_cache_folder"]
