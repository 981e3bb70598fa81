"""The image-text model itself, run on a crop of every box at test time.

Letters: Ri boxes of image i, K classes, D embedding width.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from detectron2.config import CfgNode
from detectron2.layers import nms
from detectron2.structures import Boxes, ImageList
from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.language import TextEmbeddings, Vocabulary
from ovd_d2.layers.row_softmax import row_softmax
from ovd_d2.modeling.classifiers.embedding_classifier import encoders_differ

from .blocked_scores import Opinion
from .image_branch import IMAGE_BRANCH_REGISTRY, ImageBranch, SecondHeadFactory


class RegionEncoder(Protocol):
    """What :class:`ovd_d2.encoders.CropRegionEncoder` offers."""

    def encode(self, images: Sequence[Tensor], boxes: Sequence[Tensor]) -> list[Tensor]:
        """(3, H, W) uint8 RGB images and (Ri, 4) boxes -> (Ri, D) unit vectors, per image."""
        ...


@IMAGE_BRANCH_REGISTRY.register()
class TeacherOnCrops(ImageBranch):
    """CLIP on cropped regions (ViLD, section 3.2): learns nothing, has no weights in a checkpoint.

    It crops the boxes that the detector predicts (its box regression is class-agnostic) from the
    detector's input image, as it was before normalisation, at the detector's resolution. Of boxes
    that overlap by more than ``nms_thresh`` only the one of the highest objectness is looked at.

    With MODEL.IMAGE_BRANCH.SCORES "objectness" this is the paper's CLIP on crops, with "ensemble"
    its ViLD-text + CLIP. Weights of any detector of ours with the same ROI heads fit.
    """

    looks_at_crops = True

    def __init__(
        self,
        load_encoder: Callable[[str], tuple[RegionEncoder, str]],
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str,
        logit_scale: float = 100.0,
        nms_thresh: float = 0.9,
    ):
        """
        Args:
            load_encoder: device -> encoder and its id; called when the first image comes.
            pixel_mean: MODEL.PIXEL_MEAN, in the order of ``input_format``.
            pixel_std: MODEL.PIXEL_STD.
            input_format: "RGB" or "BGR".
            logit_scale: factor on the cosine.
            nms_thresh: see above; 1 or more looks at all boxes.
        """
        super().__init__()
        if input_format not in ("RGB", "BGR"):
            raise OVDError(f"INPUT.FORMAT is {input_format}; TeacherOnCrops needs RGB or BGR.")
        self._load_encoder = load_encoder
        self._encoder: RegionEncoder | None = None
        self._encoder_id = ""
        self._class_encoder_id = ""
        self._is_bgr = input_format == "BGR"
        self.logit_scale = logit_scale
        self.nms_thresh = nms_thresh
        for name, value in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(value).view(-1, 1, 1), persistent=False)
        self.register_buffer("class_embeddings", torch.zeros(0, 0), persistent=False)

    @classmethod
    def build(cls, cfg: CfgNode, make_head: SecondHeadFactory) -> "TeacherOnCrops":
        """From ``MODEL.IMAGE_BRANCH``; no head is made."""
        branch = cfg.MODEL.IMAGE_BRANCH
        spec = branch.TEACHER or cfg.MODEL.OPEN_VOCAB.TEXT_ENCODER
        scales = tuple(float(scale) for scale in branch.CROP_SCALES)

        def load_encoder(device: str) -> tuple[RegionEncoder, str]:
            from ovd_d2.encoders import CropRegionEncoder, build_image_text_model

            model = build_image_text_model(spec, device)
            return CropRegionEncoder(model, scales=scales), model.encoder_id

        return cls(
            load_encoder,
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
            input_format=cfg.INPUT.FORMAT,
            logit_scale=cfg.MODEL.OPEN_VOCAB.LOGIT_SCALE,
            nms_thresh=branch.NMS_THRESH,
        )

    def check_vocabulary(self, embeddings: TextEmbeddings) -> None:
        """See :class:`ImageBranch`."""
        if self._encoder is not None:
            self._check_encoder(embeddings.encoder_id)

    def set_vocabulary(self, vocabulary: Vocabulary, embeddings: TextEmbeddings) -> None:
        """See :class:`ImageBranch`."""
        self.class_embeddings = embeddings.embeddings.to(self.pixel_mean.device)
        self._class_encoder_id = embeddings.encoder_id

    def candidates(self, boxes: Tensor, objectness: Tensor) -> Tensor | None:
        """See :class:`ImageBranch`."""
        if self.nms_thresh >= 1 or not torch.isfinite(boxes).all():
            return None
        return nms(boxes.float(), objectness.float(), self.nms_thresh)

    @torch.no_grad()
    def probabilities(
        self, pooled: Tensor, boxes: Sequence[Tensor], images: ImageList
    ) -> list[Tensor]:
        """See :class:`ImageBranch`.

        Raises:
            OVDError: the encoder cannot be loaded, or is not that of the class embeddings.
        """
        opinions, every = self.opinions(pooled, boxes, images), slice(None)
        with torch.autocast(pooled.device.type, enabled=False):  # fp32: see EmbeddingClassifier
            return [row_softmax(o.logits(every, every)) for o in opinions]

    @torch.no_grad()
    def opinions(self, pooled: Tensor, boxes: Sequence[Tensor], images: ImageList) -> list[Opinion]:
        """See :class:`ImageBranch`."""
        device = self.pixel_mean.device
        if self._encoder is None:
            encoder, self._encoder_id = self._load_encoder(str(device))
            self._check_encoder(self._class_encoder_id)
            self._encoder = encoder
        inside = [_inside(b, size) for b, size in zip(boxes, images.image_sizes)]
        embeddings = self._encoder.encode(self.pixels(images), inside)
        regions = [self.logit_scale * e.to(device, torch.float32) for e in embeddings]
        return [Opinion(of_image, self.class_embeddings, 1.0) for of_image in regions]

    def pixels(self, images: ImageList) -> list[Tensor]:
        """The detector's input before normalisation and padding: (3, H, W) uint8 RGB each."""
        plain = [image * self.pixel_std + self.pixel_mean for image in images]
        plain = [image.round().clamp(0, 255).to(torch.uint8) for image in plain]
        return [image.flip(0) for image in plain] if self._is_bgr else plain

    def _check_encoder(self, class_encoder_id: str) -> None:
        if encoders_differ(self._encoder_id, class_encoder_id):
            raise OVDError(
                f'The crops are embedded by "{self._encoder_id}", the classes by '
                f'"{class_encoder_id}": set MODEL.IMAGE_BRANCH.TEACHER to the model of '
                "MODEL.OPEN_VOCAB.TEXT_ENCODER."
            )


def _inside(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes clipped to the image; detections with a number that is not finite are dropped later."""
    boxes = Boxes(boxes.float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
    boxes.clip(image_size)
    return boxes.tensor
