"""Using a trained detector: opening it, predicting pictures, exporting models."""

from typing import Any

__all__ = ["OpenVocabPredictor", "Prediction", "packaged_models", "track_video"]
_HOME = {
    "OpenVocabPredictor": "predictor",
    "Prediction": "predictor",
    "packaged_models": "model_folders",
    "track_video": "video",
}


def __getattr__(name: str) -> Any:
    """Imports on demand: `ovd speed` and the loss curves need no detector."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
