"""The smallest LVIS evaluation there is, for ``ovd doctor``."""

import contextlib
import io
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from .lvis_api import install
from .lvis_backends import average_precision, evaluate_lvis


def one_box_ap() -> dict[str, float]:
    """AP (in percent, 100 is right) of one perfect box, by everything that evaluates LVIS here.

    Returns:
        {"Detectron2's LVISEvaluator": ..., "lvis-api": ..., "hotcoco": ...}.

    Raises:
        Exception: whatever a broken or missing package raises.
    """
    box = {"image_id": 1, "category_id": 1, "bbox": [1.0, 1.0, 5.0, 5.0]}
    lists: dict[str, list] = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    truth = {
        "images": [{"id": 1, "height": 9, "width": 9, **lists}],
        "categories": [{"id": 1, "name": "one", "frequency": "f"}],
        "annotations": [{"id": 1, "area": 25.0, "segmentation": [[1, 1, 6, 1, 6, 6]], **box}],
    }
    results = [{**box, "score": 0.5}]
    chatter = logging.getLogger("lvis.results")
    before, chatter.disabled = chatter.disabled, True
    try:
        found = {"Detectron2's LVISEvaluator": _by_detectron2(truth, results)}
        for backend in ("lvis-api", "hotcoco"):
            evaluation = evaluate_lvis(truth, results, "bbox", backend=backend)
            found[backend] = average_precision(evaluation)
    finally:
        chatter.disabled = before
    return found


def _by_detectron2(truth: dict[str, Any], results: list[dict[str, Any]]) -> float:
    from detectron2.evaluation import lvis_evaluation
    from lvis import LVIS

    install()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder, "truth.json")
        path.write_text(json.dumps(truth), encoding="utf-8")
        return lvis_evaluation._evaluate_predictions_on_lvis(LVIS(str(path)), results, "bbox")["AP"]
