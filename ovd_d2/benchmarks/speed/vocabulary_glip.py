"""GLIP with vocabularies of any size, against the usual way: the whole model again per caption.

Letters: K classes of the vocabulary, P captions of it, L tokens, R detections, H x W image.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ovd_d2.benchmarks.speed.vocabulary_ways import USUAL, Way, random_model, threshold_for
from ovd_d2.language.caption_prompts import Prompt
from ovd_d2.modeling.dense_heads import HeadOutputs, class_scores
from ovd_d2.structures.grounding import CaptionTokens

NAMES_PER_CAPTION = 40  # of the public code on LVIS
SAMPLE = 3  # captions that stand for all of the usual way
MOST_WITH_DEEP_FUSION = 5000  # names; beyond it a run takes minutes: only where asked for
LOG_SCALE = -3.0  # of the alignment: without it random weights score all anchors nearly the same
_SCORE_TOLERANCE, _BOX_TOLERANCE = 1e-4, 0.1  # rounding, in pixels for boxes
# What our side does: deep fusion or late, and the most names in a caption (0: as many as fit).
WAYS = {
    "same captions": (True, NAMES_PER_CAPTION),
    "packed captions": (True, 0),
    "late fusion": (False, NAMES_PER_CAPTION),
}


class GLIPSubject:
    """A GLIP of random weights. Both sides use the same modules, so what is compared is what our
    side shares between captions: backbone and FPN, text that was read once, batches, captions of
    their true length, and with late fusion the tower. The usual way, as the public code: for each
    caption of 40 names, padded to all tokens of the text encoder, the whole model."""

    def __init__(self, cfg: CfgNode, *, fusion: bool, full: bool) -> None:
        """
        Args:
            cfg: of a GLIP; ``MODEL.GLIP.FUSION`` is set in here.
            fusion: deep or late.
            full: the usual way on all captions, not on three; deep fusion for more than 5000 names.
        """
        self.model = glip_of_random_weights(cfg, fusion=fusion)
        self._ways = {way: names for way, (deep, names) in WAYS.items() if deep == fusion}
        self._most_names = MOST_WITH_DEEP_FUSION if fusion and not full else None
        self._full = full

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.model.device

    def ways(self, image: Tensor, names: list[str]) -> Iterator[Way]:
        """See :class:`Subject`."""
        if self._most_names is not None and len(names) > self._most_names:
            yield from (Way("GLIP", name, USUAL, left_out=True) for name in self._ways)
            return
        model = self.model
        prompts = model.prompts.for_vocabulary(names, NAMES_PER_CAPTION)
        run = prompts if self._full else prompts[:: -(-len(prompts) // SAMPLE)]
        _set_threshold(model, image, prompts[0])
        shown = torch.cat([prompt.class_numbers for prompt in run]).to(model.device)
        for name, per_caption in self._ways.items():
            model.names_per_caption = per_caption
            model.set_vocabulary(names)
            yield Way(
                "GLIP", name, USUAL,
                encode=partial(model, [{"image": image[:, :64, :64]}]),
                text=model.text_backbone,
                detect=partial(model, [{"image": image}]),
                detect_beside=partial(detect_usually, model, image, run),
                compare=partial(_differing, shown) if per_caption == NAMES_PER_CAPTION else None,
                captions=len(model.prompts.for_vocabulary(names, per_caption or None)),
                usual_captions=len(prompts),
                usual_run=len(run),
            )  # fmt: skip


def glip_subjects(cfg: CfgNode, full: bool) -> list[GLIPSubject]:
    """With deep and with late fusion."""
    return [GLIPSubject(cfg, fusion=fusion, full=full) for fusion in (True, False)]


def glip_of_random_weights(cfg: CfgNode, *, fusion: bool) -> nn.Module:
    """The GLIP of ``cfg``, whose random weights tell anchors apart."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.GLIP.FUSION = fusion
    model = random_model(cfg)
    model.head.alignment.log_scale.fill_(LOG_SCALE)
    return model


def detect_usually(model: nn.Module, image: Tensor, prompts: Sequence[Prompt]) -> Instances:
    """Detections of one image, the whole model again for every caption.

    Args:
        model: a GLIP.
        image: (3, H, W) in 0-255.
        prompts: captions of the vocabulary, or some of them.

    Returns:
        Those of all captions, one behind the other.
    """
    found = []
    for prompt in prompts:
        anchors, outputs, tokens, size = _outputs(model, image, prompt)
        maps = [prompt.spans.token_map(tokens.offsets[0])]
        numbers = [prompt.class_numbers.to(model.device)]
        candidates = model.head.candidates(anchors, outputs, [size], maps, numbers)
        found += model.head.select(candidates, [size])
    return Instances.cat(found)


@torch.no_grad()
def _outputs(
    model: nn.Module, image: Tensor, prompt: Prompt
) -> tuple[list[Boxes], HeadOutputs, CaptionTokens, tuple[int, int]]:
    """The whole model on one image and one caption, padded to all tokens."""
    tokens = model.text_backbone.tokenizer([prompt.spans.caption])
    padding = model.text_backbone.tokenizer.max_tokens - tokens.ids.shape[1]
    tokens = CaptionTokens(
        F.pad(tokens.ids, (0, padding)),
        F.pad(tokens.mask, (0, padding)),
        F.pad(tokens.offsets, (0, 0, 0, padding)),
    ).to(model.device)
    pixels = (image - model.pixel_mean) / model.pixel_std
    images = ImageList.from_tensors([pixels], model.backbone.size_divisibility)
    maps = model.backbone(images.tensor)
    features = [maps[name] for name in model.in_features]
    outputs = model.head(features, model.text_backbone(tokens), tokens.mask)
    return model.anchor_generator(features), outputs, tokens, images.image_sizes[0]


def _set_threshold(model: nn.Module, image: Tensor, prompt: Prompt) -> None:
    """By the scores of the anchors for the classes of the caption."""
    _, outputs, tokens, _ = _outputs(model, image, prompt)
    token_map = prompt.spans.token_map(tokens.offsets[0])
    scores = class_scores(outputs.token_logits[0, 0].sigmoid(), token_map)
    model.head.inference.score_threshold = threshold_for(scores)


def _differing(shown: Tensor, usual: Instances, ours: Instances) -> int:
    """``differing`` of the classes that the captions of the usual way have shown."""
    return differing(usual, ours[torch.isin(ours.pred_classes, shown)])


def differing(first: Instances, second: Instances) -> int:
    """Detections of each side that the other lacks: of one class, scores within 1e-4 and all sides
    of the boxes within 0.1 pixels are the same."""
    scale = first.scores.new_tensor([1 / _BOX_TOLERANCE] * 4 + [1 / _SCORE_TOLERANCE, 4.0])
    first, second = (
        torch.cat([x.pred_boxes.tensor, x.scores[:, None], x.pred_classes[:, None]], 1) * scale
        for x in (first, second)
    )
    near = torch.cdist(first.double(), second.double(), p=torch.inf) <= 1  # (R, R')
    return int((~near.any(dim=1)).sum() + (~near.any(dim=0)).sum())
