"""Exports a detector as one graph whose class embeddings are an input: a vocabulary is exchanged
without another export.

Letters: H, W height and width of the picture, K classes, D embedding width.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from PIL import Image

from ovd_d2 import __version__
from ovd_d2.config_file import explain_config_error, load_config
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_new_folder, new_folder, write_json, write_picture
from ovd_d2.files.images import read_image

from .class_embedding_files import write_class_embeddings
from .detector_graphs import DetectorGraph, check_meta_architecture
from .export import threshold_facts
from .graph_check import Comparison, check_graph, draw_check, random_picture
from .graph_files import GraphFormat, GraphRunner, find_format, input_names, output_names
from .model_folders import FACTS as MODEL_FACTS
from .model_folders import config_and_weights, facts_of
from .open_detector import run_files
from .predictor import OpenVocabPredictor

FACTS, CLASSES = "graph.json", "classes.safetensors"
EXAMPLE, PICTURE = "detect.py", "check.jpg"


def export_graph(
    model: str | os.PathLike,
    out: str | os.PathLike,
    kind: str = "onnx",
    *,
    config_file: str | os.PathLike = "",
    overrides: Sequence[str] = (),
    score_threshold: str | float = "",
    check: Sequence[str | os.PathLike] = (),
    on_step: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Writes ``out``: the graph, its facts (``graph.json``; they are in the graph's file too), the
    embeddings of the model's own classes (``classes.safetensors``), what model and graph find in a
    picture (``check.jpg``), and for ONNX a program that detects (``detect.py``). The folder appears
    whole, or, where the graph does not find what the model finds, not at all.

    Args:
        model: a checkpoint, or a model as ``OpenVocabPredictor.from_pretrained`` knows it.
        out: a new folder.
        kind: "onnx" or "torchscript".
        config_file: the yaml of a checkpoint; "": ``config.yaml`` beside it.
        overrides: KEY, value, KEY, value, ...
        score_threshold: below which the graph drops detections: a number, or a data set with boxes
            on which to choose it; "": the model's own.
        check: pictures on which graph and model are compared; none: a random one.
        on_step: told what is being done.

    Returns:
        the facts.

    Raises:
        OVDError: a model of which no graph can be made, a missing package, ``out`` is there
            already, or the check fails.
    """
    graph_format = find_format(kind)
    check_new_folder("--out", out)
    pictures = {os.fspath(path): read_image(path) for path in check}
    pictures = pictures or {"a random picture": random_picture()}
    on_step("opens the model")
    predictor, graph = open_graph(model, config_file, overrides, score_threshold)
    if predictor.vocabulary is None:
        raise OVDError(
            f"{model}: the names of its classes cannot be had here: prepare its data set, or "
            'override MODEL.OPEN_VOCAB.VOCABULARY "cat, red mug".'
        )
    with new_folder("--out", out) as folder:
        rows = write_class_embeddings(predictor, folder / CLASSES)
        facts = describe(predictor, graph, kind)
        facts |= {"model": Path(model).name, "encoder_id": rows.encoder_id, "embed_dim": rows.dim}
        on_step("traces and writes the graph")
        run = _written(graph_format, graph, folder / graph_format.file, facts)
        on_step("compares it with the model")
        comparison = Comparison(graph.score_threshold, graph.most)
        check_graph(run, predictor, comparison, pictures)
        facts["check"] = {
            "pictures": len(pictures),
            "detections": comparison.detections,
            "largest_difference_of_boxes": comparison.box,
            "largest_difference_of_scores": comparison.score,
        }
        write_json(folder / FACTS, facts)
        drawn = draw_check(run, predictor, graph.score_threshold, next(iter(pictures.values())))
        write_picture(Image.fromarray(drawn), folder / PICTURE)
        if kind == "onnx":
            shutil.copyfile(Path(__file__).with_name("detect_onnx.py"), folder / EXAMPLE)
    return facts


def _written(
    kind: GraphFormat, graph: DetectorGraph, path: Path, facts: Mapping[str, Any]
) -> GraphRunner:
    """What runs the file ``path``, which is written."""
    try:
        kind.write(graph, path, facts)
    except RuntimeError as error:  # of torch's tracer and exporter; an operation they do not know
        reason = str(error).strip().splitlines()[0]
        raise OVDError(
            f"The graph cannot be made ({reason}): `--format folder` exports every model."
        ) from error
    try:
        return kind.open(path)
    except Exception as error:  # whatever the runtime raises
        reason = str(error).strip().splitlines()[0]
        raise OVDError(
            f"The graph was made but cannot be opened ({reason}): a newer onnxruntime may know it "
            "(pip install -U onnxruntime)."
        ) from error


def open_graph(
    model: str | os.PathLike,
    config_file: str | os.PathLike = "",
    overrides: Sequence[str] = (),
    wanted: str | float = "",
) -> tuple[OpenVocabPredictor, DetectorGraph]:
    """The model and its graph, both with the score threshold that is ``wanted``; for the arguments
    see :func:`export_graph`.

    Raises:
        OVDError: there is no such model, or no graph can be made of it.
    """
    path = Path(model)
    is_run = config_file or path.is_file() or (path.is_dir() and not (path / MODEL_FACTS).is_file())
    if is_run:
        weights, config = run_files(os.fspath(model), os.fspath(config_file))
        cfg = load_config(os.fspath(config), list(overrides))
    else:
        cfg, weights = config_and_weights(model)
        _override(cfg, overrides)
    kind = check_meta_architecture(cfg.MODEL.META_ARCHITECTURE)
    known = {} if is_run else facts_of(model)
    threshold = threshold_facts(cfg, weights, wanted).get("score_threshold")
    if threshold is None:
        threshold = known.get("score_threshold")
    predictor = OpenVocabPredictor(cfg, weights, device="cpu", score_threshold=threshold)
    return predictor, kind(predictor.model, threshold).eval()


def _override(cfg: CfgNode, overrides: Sequence[str]) -> None:
    try:
        cfg.merge_from_list(list(overrides))
    except Exception as error:
        raise OVDError(explain_config_error("The options", error, cfg)) from error


def describe(predictor: OpenVocabPredictor, graph: DetectorGraph, kind: str) -> dict[str, Any]:
    """What somebody has to know who runs the graph and has nothing else of ovd_d2."""
    cfg = predictor.cfg.INPUT
    resize: dict[str, int] = {}  # as it is
    if cfg.SQUARE:
        resize = {"square": cfg.SQUARE}
    elif cfg.MIN_SIZE_TEST > 0:
        resize = {"short_side": cfg.MIN_SIZE_TEST, "longest_side": cfg.MAX_SIZE_TEST}
    kinds = {
        "image": f"(height, width, 3) uint8, {cfg.FORMAT}, 0-255, resized as resize says",
        "class_embeddings": "(classes, embed_dim) float32, finite, any norm, by encoder_id",
        "is_novel": "(classes,) bool, classes that the model had no boxes of; all False: unknown",
        "boxes": "(detections, 4) float32, x0 y0 x1 y1 in pixels of image",
        "scores": "(detections,) float32 in 0..1, best first",
        "classes": "(detections,) int64, rows of class_embeddings",
        "masks": "(detections, side, side) float32, probability of the pixels inside each box",
    }
    return {
        "ovd_d2": __version__,
        "format": kind,
        "inputs": {name: kinds[name] for name in input_names(graph)},
        "outputs": {name: kinds[name] for name in output_names(graph)},
        "dynamic_axes": ["height", "width", "classes", "detections"],
        "batch_size": 1,
        "colours": cfg.FORMAT,
        "resize": resize,
        "interpolation": "bilinear, as Pillow",
        **graph.settings,
    }
