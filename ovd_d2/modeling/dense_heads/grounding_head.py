"""GLIP's head: from the levels of a pyramid and the tokens of a caption to aligned boxes.

Letters: N images, P prompts, A anchors (one per location, all levels), L tokens, C visual channels,
Ct text width, h x w size of a level.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ovd_d2.errors import OVDError

from .alignment import AlignmentLogits
from .candidates import Candidates
from .grounding_inference import GroundingInference
from .grounding_losses import GroundingLoss
from .grounding_outputs import LOGIT_LIMIT, HeadOutputs
from .tower import GroundingTower


class GroundingHead(nn.Module):
    """Tower, token logits, box deltas and centerness.

    A batch pads its images to one size. Here an image is read to its own padded size only, that of
    a batch of its own, so its results do not depend on the others: images of equal size run
    together, sizes one after the other. (Masks would not do: the reading of offsets and the
    upsampling in the tower depend on the size of the maps.)
    """

    def __init__(
        self,
        *,
        tower: GroundingTower,
        channels: int,
        text_width: int,
        loss: GroundingLoss,
        inference: GroundingInference,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        size_divisibility: int = 32,
        positive_prior: float = 0.01,
        initial_scale: float = 1.0,
        normalize: bool = False,
    ) -> None:
        """
        Args:
            tower: fuses image and text, keeps all sizes.
            channels: C, of the features.
            text_width: Ct.
            loss: training targets and losses.
            inference: post-processing.
            strides: of the levels, in pixels.
            size_divisibility: an image alone is padded to a multiple of it.
            positive_prior: probability that an untrained head gives to every token.
            initial_scale: see :class:`AlignmentLogits`.
            normalize: see there.
        """
        super().__init__()
        self.tower = tower
        self.alignment = AlignmentLogits(
            channels, text_width, positive_prior=positive_prior, initial_scale=initial_scale,
            normalize=normalize,
        )  # fmt: skip
        self.box_deltas = nn.Linear(channels, 4)
        self.centerness = nn.Linear(channels, 1)
        for output in (self.box_deltas, self.centerness):
            nn.init.normal_(output.weight, std=0.01)
            nn.init.zeros_(output.bias)
        self.level_scales = nn.Parameter(torch.ones(len(strides)))
        self.loss = loss
        self.inference = inference
        self.strides = tuple(strides)
        self.size_divisibility = size_divisibility

    def forward(
        self,
        features: Sequence[Tensor],
        text: Tensor,
        text_mask: Tensor,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        *,
        every_pair: bool = False,
    ) -> HeadOutputs:
        """
        Args:
            features: levels (N, C, h, w), finest first.
            text: (P, L, Ct) hidden states of the text backbone.
            text_mask: (P, L) bool, True on tokens that are not padding.
            image_sizes: N (height, width) in pixels before padding; None: no image is padded.
            every_pair: False: N = P, image i goes with prompt i and the prompts' axis of the result
                is 1. True: every image with every prompt; with fusion, memory grows with N * P, so
                give a long vocabulary in several calls and join the candidates.

        Raises:
            OVDError: the numbers of levels, images or prompts do not fit.
        """
        features = list(features)
        if len(features) != len(self.strides):
            raise OVDError(
                f"features has {len(features)} levels, the head was built for "
                f"{len(self.strides)} strides: give one feature map per stride."
            )
        if not every_pair and len(text) != len(features[0]):
            raise OVDError(
                f"text holds {len(text)} prompts for {len(features[0])} images: give one prompt "
                "per image or set every_pair."
            )
        full = tuple(tuple(level.shape[-2:]) for level in features)
        grids = [self._grids(size, full) for size in image_sizes or []]
        if all(grid == full for grid in grids):
            return self._read(features, text, text_mask, every_pair)
        parts, order = [], []
        for grid in dict.fromkeys(grids):
            rows = [image for image, other in enumerate(grids) if other == grid]
            own = [level[rows, :, :h, :w] for level, (h, w) in zip(features, grid)]
            prompts = (text, text_mask) if every_pair else (text[rows], text_mask[rows])
            parts.append(_padded(self._read(own, *prompts, every_pair), grid, full))
            order += rows
        back = torch.tensor(order, device=text.device).argsort()
        fields = ("token_logits", "box_deltas", "centerness", "usable")
        return HeadOutputs(
            **{f: torch.cat([getattr(part, f) for part in parts])[back] for f in fields}
        )

    def encode_images(self, features: Sequence[Tensor]) -> list[Tensor]:
        """What needs no text, once per image for any number of prompts: without fusion the tower.

        Args:
            features: levels (N, C, h, w) of images that fill them.

        Returns:
            levels of the same shapes, for :meth:`read_pairs`.
        """
        if self.tower.fuses:
            return list(features)
        return self.tower(features, None, None)[0]

    def read_pairs(
        self, levels: Sequence[Tensor], text: Tensor, text_mask: Tensor, *, every_pair: bool = True
    ) -> HeadOutputs:
        """Outputs of images with prompts.

        Args:
            levels: of :meth:`encode_images`.
            text: see :meth:`forward`, as the rest.
            text_mask: see there.
            every_pair: see there.
        """
        number, prompts = len(levels[0]), len(text) if every_pair else 1
        if self.tower.fuses:
            levels, text = self.tower(levels, text, text_mask, every_pair=every_pair)
        visual = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        visual = visual.unflatten(0, (number, -1))  # (N, P or 1, A, C)
        if every_pair and not self.tower.fuses:
            text = text[None]
        else:
            text = text.unflatten(0, (number, prompts))
        sizes = [level[0, 0].numel() for level in levels]
        scales = torch.cat(
            [scale.expand(size) for scale, size in zip(self.level_scales, sizes)]
        )  # (A,)
        return HeadOutputs(
            self.alignment(visual, text),
            self.box_deltas(visual).float() * scales[:, None],
            self.centerness(visual)[..., 0].float(),
        )

    def losses(
        self,
        anchors: Sequence[Boxes],
        outputs: HeadOutputs,
        gt_boxes: Sequence[Tensor],
        gt_tokens: Sequence[Tensor],
        text_mask: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of a batch in which image i goes with prompt i.

        Args:
            anchors: per level, one per location.
            outputs: of :meth:`forward` with ``every_pair=False``.
            gt_boxes: per image (Gi, 4) x1 y1 x2 y2 in pixels of the resized image.
            gt_tokens: per image (Gi, L) bool, the tokens of each object's phrase.
            text_mask: (N, L) bool.

        Returns:
            "loss_token", "loss_box_reg", "loss_centerness".
        """
        return self.loss(anchors, outputs, gt_boxes, gt_tokens, text_mask)

    def candidates(
        self,
        anchors: Sequence[Boxes],
        outputs: HeadOutputs,
        image_sizes: Sequence[tuple[int, int]],
        token_maps: Sequence[Tensor],
        class_numbers: Sequence[Tensor],
    ) -> list[Candidates]:
        """Scored boxes per image before suppression.

        Args:
            anchors: per level, one per location.
            outputs: of :meth:`forward`.
            image_sizes: N (height, width) that boxes are clipped to.
            token_maps: per prompt (Kp, L) bool, the tokens of each class.
            class_numbers: per prompt (Kp,) int64, numbers of the classes in the result.
        """
        return self.inference.candidates(anchors, outputs, image_sizes, token_maps, class_numbers)

    def select(
        self, candidates: Sequence[Candidates], image_sizes: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """``pred_boxes``, ``scores``, ``pred_classes`` per image, after suppression."""
        return self.inference.select(candidates, image_sizes)

    def projections(self) -> list[nn.Module]:
        """What a linear probe trains: everything behind the tower, but the scales of levels."""
        return [self.alignment, self.box_deltas, self.centerness]

    def _grids(
        self, size: tuple[int, int], full: tuple[tuple[int, int], ...]
    ) -> tuple[tuple[int, int], ...]:
        """(h, w) of every level that an image of ``size`` pixels would have alone."""
        unit = self.size_divisibility or 1
        height, width = (math.ceil(int(side) / unit) * unit for side in size)
        return tuple(
            (min(math.ceil(height / stride), h), min(math.ceil(width / stride), w))
            for stride, (h, w) in zip(self.strides, full)
        )

    def _read(
        self, features: list[Tensor], text: Tensor, text_mask: Tensor, every_pair: bool
    ) -> HeadOutputs:
        """Outputs of images that fill their maps."""
        levels = self.encode_images(features)
        return self.read_pairs(levels, text, text_mask, every_pair=every_pair)


def _padded(
    outputs: HeadOutputs, grid: tuple[tuple[int, int], ...], full: tuple[tuple[int, int], ...]
) -> HeadOutputs:
    """Outputs on levels of size ``grid`` as those of levels of size ``full``."""
    usable = torch.cat(
        [
            F.pad(torch.ones(h, w, dtype=torch.bool), (0, width - w, 0, height - h)).flatten()
            for (h, w), (height, width) in zip(grid, full)
        ]
    ).to(outputs.centerness.device)
    places = usable.nonzero()[:, 0]

    def spread(values: Tensor, fill: float) -> Tensor:
        shape = (*values.shape[:2], len(usable), *values.shape[3:])
        return values.new_full(shape, fill).index_copy(2, places, values)

    return HeadOutputs(
        spread(outputs.token_logits, -LOGIT_LIMIT),
        spread(outputs.box_deltas, 0.0),
        spread(outputs.centerness, -LOGIT_LIMIT),
        usable.expand(len(outputs.centerness), -1),
    )
