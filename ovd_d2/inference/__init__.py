"""Using a trained detector: opening it, predicting pictures, exporting models."""

from typing import Any

__all__ = [
    "ByExamples",
    "OpenVocabPredictor",
    "Prediction",
    "packaged_models",
    "to_fiftyone",
    "to_supervision",
    "track_video",
]
_HOME = {
    "ByExamples": "example_vocabulary",
    "OpenVocabPredictor": "predictor",
    "Prediction": "prediction",
    "packaged_models": "model_folders",
    "to_fiftyone": "fiftyone_samples",
    "to_supervision": "supervision_detections",
    "track_video": "video",
}


def __getattr__(name: str) -> Any:
    """Imports on demand: `ovd speed` and the loss curves need no detector."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
