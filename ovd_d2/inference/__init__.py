"""Using a trained detector: predicting pictures, exporting models, drawing what was found."""

from typing import Any

__all__ = ["OpenVocabPredictor", "Prediction", "draw_detections", "packaged_models"]
_HOME = {
    "OpenVocabPredictor": "predictor",
    "Prediction": "predictor",
    "draw_detections": "draw",
    "packaged_models": "model_folders",
}


def __getattr__(name: str) -> Any:
    """Imports on demand: `ovd speed` and the loss curves need no detector."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
