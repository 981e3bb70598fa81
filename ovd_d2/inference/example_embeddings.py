"""From example boxes to class embeddings: what a detector sees in them, mixed with words.

Letters: K classes, D embedding width, R boxes of a picture, H, W its height and width.
"""

import os
from collections.abc import Callable

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn.functional import normalize

from ovd_d2.encoders.region_encoder import CropRegionEncoder
from ovd_d2.encoders.registry import build_image_text_model
from ovd_d2.errors import OVDError
from ovd_d2.files.images import Picture, to_rgb
from ovd_d2.language import ClassEmbedder, TextEmbeddings, Vocabulary
from ovd_d2.language.example_rows import Mixing, example_rows, word_directions
from ovd_d2.modeling.open_vocabulary import part_with

from .examples import Example, Examples, boxes_inside
from .open_detector import to_sample

WAYS = ("model", "crop")
Sight = Callable[[np.ndarray, Tensor], tuple[Tensor, Tensor]]
"""(H, W, 3) uint8 RGB and boxes (R, 4) in its pixels -> (R, D) of norm 1, and (D,) around them."""
_WINDOWS = (0.0, 0.25, 0.5)  # where windows of half the sides begin, as shares of the sides


def learn_rows(
    model: nn.Module,
    cfg: CfgNode,
    examples: Examples,
    *,
    words: ClassEmbedder,
    trained: Vocabulary | None = None,
    how: str = "model",
    input_format: str = "BGR",
) -> TextEmbeddings:
    """The rows of the classes that have examples, see :mod:`ovd_d2.language.example_rows`.

    A picture is read once, whatever the number of its boxes, and no two at a time. The order of
    examples does not matter.

    Args:
        model: in eval mode.
        cfg: it was built from; reads ``INPUT`` and ``MODEL.OPEN_VOCAB.TEXT_ENCODER``.
        examples: at least one class has some.
        words: the model's own embedder of words.
        trained: the vocabulary it was trained with, if that is known.
        how: "model": what the detector itself sees in a box. "crop": what the image tower of its
            text encoder sees in the crop; around are then 9 windows of half the picture's sides.
            On mini, half of val, novel classes by 5 examples: AP_novel 17.6 ("crop" 13.7), by 1
            example 10.8 (9.5).
        input_format: colour order of arrays and tensors.

    Raises:
        OVDError: a model that cannot, a picture that cannot be read, or a box that is not inside.
    """
    from tqdm import tqdm

    see = _sight(model, cfg, how)
    names = [name for name, given in examples.items() if given]
    sums: dict[str, Tensor] = {}
    around: list[Tensor] = []
    pictures = _by_picture(examples)
    for members in tqdm(pictures, desc="looking at examples", unit="image", delay=5, disable=None):
        pixels = _pixels(members, input_format, cfg.INPUT.MAX_PIXELS)
        boxes = boxes_inside(members, *pixels.shape[:2])
        with torch.no_grad():
            found, mean = see(pixels, boxes)
        around.append(mean.double().cpu())
        for (name, _), vector in zip(members, found.double().cpu()):
            sums[name] = sums.get(name, 0) + vector
    mixing = getattr(part_with(model, "example_mixing"), "example_mixing", Mixing())
    directions = word_directions(names, words, trained, mixing.own_name)
    means = torch.stack([sums[name] / len(examples[name]) for name in names])
    rows = example_rows(means, torch.stack(around).mean(dim=0), directions, mixing.strength)
    return TextEmbeddings(rows, tuple(names), words.encoder_id)


def _by_picture(examples: Examples) -> list[list[tuple[str, Example]]]:
    """Examples with their classes, those of one picture together."""
    groups: dict[str | int, list[tuple[str, Example]]] = {}
    for name, given in examples.items():
        for example in given:
            groups.setdefault(_key(example.image), []).append((name, example))
    return list(groups.values())


def _key(image: Picture) -> str | int:
    return os.path.abspath(image) if isinstance(image, str | os.PathLike) else id(image)


def _pixels(members: list[tuple[str, Example]], input_format: str, max_pixels: int) -> np.ndarray:
    name, example = members[0]
    try:
        return to_rgb(example.image, input_format=input_format, max_pixels=max_pixels)
    except OVDError as error:
        raise OVDError(f"Class '{name}': {error}") from error


def check_way(how: str) -> None:
    """Raises OVDError if ``how`` is no way to see examples."""
    if how not in WAYS:
        raise OVDError(f'Examples are seen by "model" or "crop", not {how!r}.')


def check_sees_examples(model: nn.Module) -> None:
    """Raises OVDError if ``model`` looks for words alone."""
    if part_with(model, "region_embeddings") is None and part_with(model, "embed_examples") is None:
        raise OVDError(
            f"{type(model).__name__} looks for words alone: examples need a detector with ovd_d2's "
            "ROI heads (ViLD, RKD), DetCLIP, OWL-ViT or OWLv2."
        )


def _sight(model: nn.Module, cfg: CfgNode, how: str) -> Sight:
    check_way(how)
    check_sees_examples(model)
    heads = part_with(model, "region_embeddings")
    owner = part_with(model, "embed_examples")
    if how == "crop" and heads is None:
        raise OVDError(
            f"{type(model).__name__} embeds words itself, so it has no image tower that could see "
            'crops: let it look at the examples itself ("model").'
        )
    if how == "crop":
        return _crops(cfg)
    if owner is not None:
        embed = owner.embed_examples
    else:

        def embed(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
            return _of_roi_heads(model, heads, image, boxes)

    def see(pixels: np.ndarray, boxes: Tensor) -> tuple[Tensor, Tensor]:
        image = to_sample(pixels, cfg)["image"]
        height, width = pixels.shape[:2]
        scale = [image.shape[2] / width, image.shape[1] / height]
        return embed(image, boxes * boxes.new_tensor(scale * 2))

    return see


def _of_roi_heads(
    model: nn.Module, heads: nn.Module, image: Tensor, boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """See :class:`~ovd_d2.modeling.open_vocabulary.SeesExamples`; around are the proposals."""
    images = model.preprocess_image([{"image": image}])
    features = model.backbone(images.tensor)
    (proposals,), _ = model.proposal_generator(images, features, None)
    every = Boxes.cat([Boxes(boxes.to(model.device)), proposals.proposal_boxes])
    found = heads.region_embeddings(features, [every])
    rest = found[len(boxes) :]
    return found[: len(boxes)], (rest if len(rest) else found).mean(dim=0)


def _crops(cfg: CfgNode) -> Sight:
    spec = cfg.MODEL.OPEN_VOCAB.TEXT_ENCODER
    tower = build_image_text_model(spec, cfg.MODEL.DEVICE)
    encoder = CropRegionEncoder(tower, (1.0,))

    def see(pixels: np.ndarray, boxes: Tensor) -> tuple[Tensor, Tensor]:
        height, width = pixels.shape[:2]
        corners = torch.tensor([(x, y, x + 0.5, y + 0.5) for y in _WINDOWS for x in _WINDOWS])
        windows = corners * corners.new_tensor([width, height] * 2)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        (found,) = encoder.encode([image], [torch.cat([boxes, windows])])
        return found[: len(boxes)], normalize(found[len(boxes) :], dim=1).mean(dim=0)

    return see
