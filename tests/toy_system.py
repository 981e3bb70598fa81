"""A system that this package does not know: a one-stage detector that reads words letter by letter.

Named by ``--register``, as a user's own file is: it registers the meta-architecture, a task for the
ROI heads of others, and two data sets whose classes are numbered in different orders.
"""

import os

import torch
from detectron2.config import configurable
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn.functional import cross_entropy, pad

from ovd_d2.language import as_vocabulary, configured_vocabulary
from ovd_d2.modeling.roi_heads import REGION_TASK_REGISTRY, RegionTask
from ovd_d2.structures import Supervision

CHANNEL = {"red": 0, "green": 1, "blue": 2}

for name in ("toy_train", "toy_turned"):
    folder = os.environ["TOY_DATA"]
    register_coco_instances(name, {}, f"{folder}/{name}.json", f"{folder}/images")


@REGION_TASK_REGISTRY.register()
class Sharpness(RegionTask):
    """Something else to learn from the sampled proposals, with a weight of its own."""

    kind = Supervision.BOX

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(input_shape.channels))

    def losses(self, predictor, features, rows):
        return {"loss_sharpness": ((features @ self.weight).tanh() ** 2).sum() / 100}


@META_ARCH_REGISTRY.register()
class WordReader(nn.Module):
    """One box per cell of 8 x 8 pixels, scored by its mean colour and the letters of a name."""

    @configurable
    def __init__(self, *, vocabulary):
        super().__init__()
        self.letters = nn.Embedding(128, 8)
        self.look = nn.Conv2d(3, 8, 8, stride=8)
        self.set_vocabulary(vocabulary)

    @classmethod
    def from_config(cls, cfg):
        spec = cfg.MODEL.OPEN_VOCAB.VOCABULARY
        return {"vocabulary": configured_vocabulary(spec, cfg.DATASETS.TRAIN)}

    @property
    def device(self):
        return self.look.weight.device

    def set_vocabulary(self, vocabulary):
        self.vocabulary = None if vocabulary is None else as_vocabulary(vocabulary)

    def forward(self, batched_inputs):
        words = [torch.tensor(list(name.encode())) for name in self.vocabulary.names]
        words = torch.stack([self.letters(word).mean(dim=0) for word in words])
        results, losses = [], []
        for sample in batched_inputs:
            image = sample["image"].float() / 255
            logits = pad((self.look(image[None])[0].flatten(1).T @ words.T), (0, 1))
            columns = image.shape[2] // 8
            cells = torch.arange(len(logits))
            corner = torch.stack([cells % columns, cells // columns], dim=1) * 8.0
            if self.training:
                rows = sample["instances"]
                self.look_at_the_truth(image, rows)
                x, y = (rows.gt_boxes.get_centers() // 8).long().T
                target = torch.full((len(logits),), len(words))
                target[(x + y * columns).clamp(max=len(logits) - 1)] = rows.gt_classes
                losses.append(cross_entropy(logits, target))
                continue
            scores, classes = logits.softmax(dim=1)[:, :-1].max(dim=1)
            size = sample["height"], sample["width"]
            boxes = Boxes(torch.cat([corner, corner + 8], dim=1))
            boxes.scale(size[1] / image.shape[2], size[0] / image.shape[1])
            order = scores.argsort(descending=True)
            found = Instances(size, pred_boxes=boxes, scores=scores, pred_classes=classes)
            results.append({"instances": found[order]})
        return {"loss_words": torch.stack(losses).mean()} if self.training else results

    def look_at_the_truth(self, image, rows):
        """Class numbers of targets are places in the vocabulary: the colours say so."""
        for (x, y), k in zip(rows.gt_boxes.get_centers().long().tolist(), rows.gt_classes.tolist()):
            colours = image[:, y, x].flip(0)  # BGR
            assert colours[CHANNEL[self.vocabulary.names[k]]] > 0.9, (k, colours)
