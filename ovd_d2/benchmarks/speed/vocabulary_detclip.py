"""DetCLIP with vocabularies of any size, against itself with 80 names.

Letters: K classes of the vocabulary, A anchors, H x W image.
"""

from collections.abc import Iterator
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import Tensor, nn

from ovd_d2.benchmarks.speed.vocabulary_ways import Way, class_names, random_model, threshold_for

FEW = 80  # names that all others are compared with: COCO's number
_SHOWN = 40  # names that the threshold is set by, as many as in a caption of GLIP


class DetCLIPSubject:
    """Two DetCLIPs of the same random weights, one of which keeps 80 names: swapping the names of
    one would encode them again for every run."""

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: of a DetCLIP.
        """
        self.model, self.few = random_model(cfg), random_model(cfg)
        self.few.set_vocabulary(class_names(FEW))

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.model.device

    def ways(self, image: Tensor, names: list[str]) -> Iterator[Way]:
        """See :class:`Subject`."""
        _set_threshold([self.model, self.few], image)
        self.model.set_vocabulary(names)
        small = [{"image": image[:, :64, :64]}]
        self.few(small)  # encodes the 80 names
        yield Way(
            "DetCLIP", "parallel concepts", f"{FEW} names",
            encode=partial(self.model, small),
            text=self.model.text,
            detect=partial(self.model, [{"image": image}]),
            detect_beside=partial(self.few, [{"image": image}]),
        )  # fmt: skip


def detclip_subjects(cfg: CfgNode, full: bool) -> list[DetCLIPSubject]:
    """One, which leaves nothing out."""
    return [DetCLIPSubject(cfg)]


@torch.no_grad()
def _set_threshold(models: list[nn.Module], image: Tensor) -> None:
    """Of models of the same weights, by the scores of the anchors for the first 40 names."""
    model = models[0]
    pixels = (image - model.pixel_mean) / model.pixel_std
    images = ImageList.from_tensors([pixels], model.backbone.size_divisibility)
    maps = model.backbone(images.tensor)
    outputs = model.head([maps[name] for name in model.in_features])
    concepts = model.text.encode([model.prompts.text(name) for name in class_names(_SHOWN)])
    scores = (outputs.regions[0] @ concepts.T + model.head.bias).sigmoid()  # (A, 40)
    for one in models:
        one.detections.score_threshold = threshold_for(scores)
