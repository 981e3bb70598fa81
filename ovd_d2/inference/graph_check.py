"""Comparison of a traced detector with the model it was made of.

Letters: H, W height and width of a picture, K classes, D embedding width, R detections.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, ROIMasks
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.language import TextEmbeddings, Vocabulary
from ovd_d2.modeling import get_vocabulary, set_vocabulary
from ovd_d2.modeling.open_vocabulary import part_with
from ovd_d2.visualization.detections import draw_detections
from ovd_d2.visualization.side_by_side import side_by_side

from .class_embedding_files import class_embeddings
from .graph_files import GraphRunner
from .open_detector import to_sample
from .predictor import OpenVocabPredictor

TOLERANCE = 1e-3  # of scores, of the share of mask pixels, and of boxes in pixels


@dataclass
class Found:
    """Detections of one picture: boxes (R, 4), scores (R,), classes (R,), masks (R, H, W) bool."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None = None


@dataclass
class Comparison:
    """What two sides have in common.

    Attributes:
        least: the score threshold of both.
        most: how many detections a picture has at most.
        detections: compared so far.
        box: largest difference of a coordinate, in pixels.
        score: of a score.
    """

    least: float
    most: int
    detections: int = 0
    box: float = 0.0
    score: float = 0.0

    def add(self, eager: Found, graph: Found, side: int, where: str) -> None:
        """Looks for every detection of each among those of the other, in any order, since equal
        scores have none. What scores as little as is kept at all may have met the limit on one side
        alone and need not be there.

        Args:
            eager: of the model.
            graph: of the graph.
            side: the longer one of the picture; of more than 1000 pixels boxes may differ more.
            where: what is looked at, for messages.

        Raises:
            OVDError: one is missing, or masks differ.
        """
        sides = {"the graph": (eager, 1), "the model": (graph, 0)}
        full = [float(f.scores.min()) for f, _ in sides.values() if len(f.scores) >= self.most]
        surely = max([self.least, *full]) * (1 + TOLERANCE)
        boxes = (eager.boxes[:, None] - graph.boxes).abs().amax(dim=2)
        scores = (eager.scores[:, None] - graph.scores).abs()
        same = (eager.classes[:, None] == graph.classes) & (scores <= TOLERANCE)
        same &= boxes <= TOLERANCE * max(1.0, side / 1000)
        for name, (found, axis) in sides.items():
            missing = int(((found.scores > surely) & ~same.any(dim=axis)).sum())
            if missing:
                raise _differs(where, f"{name} lacks {missing} of {len(found.scores)} detections")
        rows = same.any(dim=1).nonzero()[:, 0]
        if not len(rows):
            return
        partners = boxes.masked_fill(~same, torch.inf)[rows].argmin(dim=1)
        if eager.masks is not None:
            share = float((eager.masks[rows] != graph.masks[partners]).float().mean())
            if share > TOLERANCE:
                raise _differs(where, f"{share:.2%} of the masks' pixels differ")
        self.detections += len(rows)
        self.box = max(self.box, float(boxes[rows, partners].max()))
        self.score = max(self.score, float(scores[rows, partners].max()))


def check_graph(
    run: GraphRunner,
    predictor: OpenVocabPredictor,
    comparison: Comparison,
    pictures: Mapping[str, np.ndarray],
) -> None:
    """Runs both on every picture, whole and cut to three quarters, with the model's classes and
    with every other one of them.

    Args:
        run: the graph.
        predictor: the model, with classes; it has them again afterwards.
        comparison: gets what they find.
        pictures: (H, W, 3) uint8 RGB by name.

    Raises:
        OVDError: the graph finds something else, or there was nothing to find.
    """
    vocabulary, rows = get_vocabulary(predictor.model), class_embeddings(predictor)
    for step in (1, 2):
        names, novel = vocabulary.names[::step], vocabulary.is_novel[::step]
        some = TextEmbeddings(rows.embeddings[::step], names, rows.encoder_id)
        with _classes(predictor, Vocabulary(names, is_novel=novel), some):
            for name, pixels in pictures.items():
                image = to_sample(pixels, predictor.cfg)["image"]
                for view in (image, image[:, : image.shape[1] * 3 // 4 or 1]):
                    height, width = view.shape[1:]
                    where = f"{name}, {width} x {height} pixels, {len(names)} classes"
                    given = (view.permute(1, 2, 0).contiguous().numpy(), some.embeddings.numpy())
                    graph = find_by_graph(run, given, np.array(novel), where)
                    eager = find_eagerly(predictor.model, view, comparison.least)
                    comparison.add(eager, graph, max(height, width), where)
    if not comparison.detections:
        raise OVDError(
            f"Nothing is found in {', '.join(pictures)}, so the graph cannot be checked: give "
            "--check IMAGE with a picture of what the model knows, or a lower --score-threshold."
        )


@contextmanager
def _classes(
    predictor: OpenVocabPredictor, vocabulary: Vocabulary, embeddings: TextEmbeddings
) -> Iterator[None]:
    """Inside, the model has other classes, whose embeddings are ready."""
    model = predictor.model
    before, owner = get_vocabulary(model), part_with(model, "class_embedder")
    embedder = owner.class_embedder
    set_vocabulary(model, vocabulary, embeddings)
    try:
        yield
    finally:
        set_vocabulary(model, before, embedder)


def find_eagerly(model: nn.Module, image: Tensor, score_threshold: float = 0.0) -> Found:
    """What the model finds in (3, H, W) pixels as it reads them, in their frame."""
    with torch.no_grad():
        found = model([{"image": image}])[0]["instances"]
    found = found[found.scores >= score_threshold]
    masks = found.pred_masks if found.has("pred_masks") else None
    return Found(found.pred_boxes.tensor, found.scores, found.pred_classes, masks)


def find_by_graph(
    run: GraphRunner, given: tuple[np.ndarray, np.ndarray], novel: np.ndarray, where: str
) -> Found:
    """What the graph finds.

    Args:
        run: the graph.
        given: (H, W, 3) uint8 and (K, D) float32.
        novel: (K,) bool.
        where: what is looked at, for messages.

    Raises:
        OVDError: it cannot be run.
    """
    try:
        found = {name: torch.from_numpy(array) for name, array in run(*given, novel).items()}
    except Exception as error:  # whatever the runtime raises
        raise _differs(where, f"running it fails: {str(error).strip().splitlines()[-1]}") from error
    boxes, masks = found["boxes"], found.get("masks")
    if masks is not None:
        masks = ROIMasks(masks).to_bitmasks(Boxes(boxes), *given[0].shape[:2]).tensor
    return Found(boxes, found["scores"], found["classes"], masks)


def draw_check(
    run: GraphRunner, predictor: OpenVocabPredictor, score_threshold: float, pixels: np.ndarray
) -> np.ndarray:
    """What model and graph find in one picture, at the size that both read, side by side.

    Args:
        run: the graph.
        predictor: the model, with classes.
        score_threshold: of both.
        pixels: (H, W, 3) uint8 RGB.

    Returns:
        (H', W', 3) uint8, RGB.
    """
    image = to_sample(pixels, predictor.cfg)["image"]
    given = (image.permute(1, 2, 0).contiguous().numpy(), class_embeddings(predictor).embeddings)
    classes = get_vocabulary(predictor.model)
    found = {
        "model": find_eagerly(predictor.model, image, score_threshold),
        "graph": find_by_graph(run, (given[0], given[1].numpy()), np.array(classes.is_novel), ""),
    }
    shown = given[0] if predictor.cfg.INPUT.FORMAT == "RGB" else given[0][:, :, ::-1].copy()
    panels = {}
    for title, side in found.items():
        fields = {"pred_boxes": Boxes(side.boxes), "scores": side.scores}
        fields |= {"pred_classes": side.classes}
        fields |= {} if side.masks is None else {"pred_masks": side.masks}
        instances = Instances(tuple(image.shape[1:]), **fields)
        panels[title] = draw_detections(shown, instances, classes.names)
    return side_by_side(panels)


def _differs(where: str, what: str) -> OVDError:
    return OVDError(
        f"The graph does not do what the model does ({where}: {what}), so nothing was written: a "
        "part of the model that makes Python numbers of the picture's size cannot be traced; "
        "`--format folder` exports every model."
    )


def random_picture(height: int = 480, width: int = 640) -> np.ndarray:
    """(H, W, 3) uint8: coloured rectangles and noise."""
    rng = np.random.default_rng(0)
    image = np.full((height, width, 3), 128, np.int64)
    for _ in range(30):
        y, x, h, w = rng.integers(0, (height, width, height // 2, width // 2))
        image[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return (image + rng.integers(-20, 21, image.shape)).clip(0, 255).astype(np.uint8)
