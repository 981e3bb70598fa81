"""A detector in PyTorch beside its graphs (ONNX by onnxruntime, TorchScript), on a CPU: the same
pixels, the same classes, the same detections.

Letters: H, W height and width of the resized picture, K classes.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ovd_d2.errors import OVDError
from ovd_d2.files.images import read_image
from ovd_d2.inference.class_embedding_files import class_embeddings
from ovd_d2.inference.graph_check import (
    Comparison,
    Found,
    find_by_graph,
    find_eagerly,
    random_picture,
)
from ovd_d2.inference.graph_export import open_graph
from ovd_d2.inference.graph_files import find_format
from ovd_d2.inference.open_detector import to_sample
from ovd_d2.modeling import get_vocabulary

EAGER = "PyTorch"
GRAPHS = {"onnxruntime": "onnx", "TorchScript": "torchscript"}
WARM_UP = 3  # runs that do not count; TorchScript compiles in its first two


@dataclass
class Measured:
    """What was measured of one model and picture.

    Attributes:
        model: its name.
        size: (H, W).
        num_classes: K.
        detections: of the model; those of the graphs are the same, or nothing was measured.
        seconds: of each run, by side.
        bytes: of each graph's file, by side.
    """

    model: str
    size: tuple[int, int]
    num_classes: int
    detections: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)

    def median(self, side: str) -> float:
        """Median seconds of a side."""
        return statistics.median(self.seconds[side])

    def ratio(self, side: str) -> float:
        """PyTorch's time by that of ``side``, median over turns."""
        pairs = zip(self.seconds[EAGER], self.seconds[side], strict=True)
        return statistics.median(ours / its for ours, its in pairs)


def measure_exported(
    model: str | os.PathLike,
    *,
    config_file: str | os.PathLike = "",
    image: str | os.PathLike = "",
    vocabulary: str = "",
    repeats: int = 10,
    progress: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Exports the model to both formats in a temporary folder and runs all three in turn.

    Args:
        model: see ``inference.graph_export.export_graph``.
        config_file: the same.
        image: a picture; "": a random one.
        vocabulary: what to look for; "": the model's own classes.
        repeats: timed runs per side.
        progress: told what is being done.

    Raises:
        OVDError: bad arguments, or a graph that finds something else.
    """
    if repeats < 1:
        raise OVDError(f"--repeats {repeats}: give 1 or more.")
    formats = {side: find_format(name) for side, name in GRAPHS.items()}
    pixels = read_image(image) if image else random_picture()
    progress("opens the model")
    predictor, graph = open_graph(model, config_file)
    if vocabulary:
        predictor.set_vocabulary(vocabulary, alone=True)
    rows = class_embeddings(predictor)
    view = to_sample(pixels, predictor.cfg)["image"]
    given = (view.permute(1, 2, 0).contiguous().numpy(), rows.embeddings.numpy())
    novel = np.array(get_vocabulary(predictor.model).is_novel)
    found = Measured(Path(model).name, tuple(view.shape[1:]), len(rows))
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for side, kind in formats.items():
            progress(f"writes the graph for {side}")
            path = Path(folder, kind.file)
            kind.write(graph, path, {"embed_dim": rows.dim})
            runs[side], found.bytes[side] = kind.open(path), path.stat().st_size

        def run_eagerly() -> Found:
            return find_eagerly(predictor.model, view, graph.score_threshold)

        eager = run_eagerly()
        found.detections = len(eager.scores)
        for side, run in runs.items():
            comparison = Comparison(graph.score_threshold, graph.most)
            comparison.add(eager, find_by_graph(run, given, novel, side), max(view.shape), side)
        sides = {side: partial(run, *given, novel) for side, run in runs.items()}
        found.seconds = _in_turn({EAGER: run_eagerly, **sides}, repeats, progress)
    return found


def _in_turn(
    sides: dict[str, Callable[[], object]], repeats: int, progress: Callable[[str], None]
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(WARM_UP + repeats):
        progress(f"run {turn + 1} of {WARM_UP + repeats}")
        for side, run in sides.items():
            start = time.perf_counter()
            run()
            spent = time.perf_counter() - start
            if turn >= WARM_UP:
                seconds[side].append(spent)
    return seconds
