"""What a training run, running or finished, has left in its OUTPUT_DIR."""

import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

INFERENCE_LINE = re.compile(r"Inference done (\d+)/(\d+)\..*?ETA=((?:\d+ days?, )?[\d:]+)")
LOG_TAIL = 20_000  # bytes of the log that are searched for the last line of an evaluation


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        phase: "starting", "training" or "evaluating".
        done: iterations, or images when evaluating.
        total: of the same; 0 if not known yet.
        loss: last total loss, None before the first.
        eta_seconds: of this phase, None if not known yet.
    """

    phase: str = "starting"
    done: int = 0
    total: int = 0
    loss: float | None = None
    eta_seconds: float | None = None


def read_metrics(folder: str | os.PathLike) -> list[dict[str, float]]:
    """The records of ``folder``/metrics.json, oldest first, without a line cut off by a kill."""
    records = []
    try:
        text = (Path(folder) / "metrics.json").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in records if isinstance(record, dict)]


def read_progress(folder: str | os.PathLike, log_file: str | os.PathLike) -> Progress:
    """How far the run in ``folder`` is, whose console output goes to ``log_file``."""
    records = [r for r in read_metrics(folder) if "iteration" in r and "total_loss" in r]
    loss = float(records[-1]["total_loss"]) if records else None
    tail = _tail(log_file)
    # Two loggers may write the same line; what was logged last counts.
    inference = list(INFERENCE_LINE.finditer(tail))
    if inference and " iter: " not in tail[inference[-1].end() :]:
        done, total, eta = inference[-1].groups()
        return Progress("evaluating", int(done), int(total), loss, _seconds(eta))
    if not records:
        return Progress(total=_max_iter(folder))
    done, total = int(records[-1]["iteration"]) + 1, _max_iter(folder)
    if total and done >= total:
        return Progress("evaluating", 0, 0, loss, None)
    step = records[-1].get("time")
    eta = float(step) * (total - done) if step and total else None
    return Progress("training", done, total, loss, eta)


def read_results(folder: str | os.PathLike) -> tuple[int | None, dict[str, dict[str, Any]]] | None:
    """What ``train_net.py`` wrote to ``folder``/results.json.

    Returns:
        (iteration, {dataset: {task: {metric: value}}}), or None if there is no readable file.
    """
    try:
        content = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
        return content["iteration"], content["results"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_predictions(folder: str | os.PathLike) -> Path | None:
    """The results json that the evaluator of the run in ``folder`` wrote, None if there is none."""
    found = sorted(Path(folder, "inference").rglob("*_instances_results.json"))
    return found[0] if found else None


def _max_iter(folder: str | os.PathLike) -> int:
    try:
        return _max_iter_of((Path(folder) / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return 0


@lru_cache(maxsize=64)  # who watches a training asks twice a second
def _max_iter_of(config: str) -> int:
    return int(yaml.safe_load(config)["SOLVER"]["MAX_ITER"])


def _tail(path: str | os.PathLike) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _seconds(clock: str) -> float:
    """Seconds of "0:01:23" or "1 day, 0:01:23", as ``str(timedelta)`` writes them."""
    days, _, clock = clock.rpartition(", ")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return (int(days.split()[0]) if days else 0) * 86400 + hours * 3600 + minutes * 60 + seconds
