"""One interface over every CLIP-like model: images and sentences to unit vectors of one space.

Letters: N images, L sentences, D embedding width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ovd_d2.encoders.text_encoder import TextEncoder
from ovd_d2.errors import OVDError

# OpenAI's CLIP (radford et al. 2021, released code): RGB, after division by 255.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_BATCH = 64


@dataclass(frozen=True)
class ImagePreprocessing:
    """From uint8 images to what an image tower reads.

    Attributes:
        image_size: side of the square input, in pixels.
        mean: per RGB channel, of values in 0..1.
        std: per RGB channel, of values in 0..1.
        resize: "crop": shorter side to ``image_size``, then centre crop (CLIP); "squash": both
            sides to ``image_size`` (SigLIP).
        interpolation: always antialiased.
        crop_share: of "crop": the shorter side becomes ``image_size`` / this, so that less than
            the whole of it is seen (224 of 256 in timm).
    """

    image_size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    resize: Literal["crop", "squash"] = "crop"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop_share: float = 1.0

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 RGB -> (N, 3, image_size, image_size) fp32, normalised.

        Images that have that size already are not resampled. Resampling happens on uint8, at most
        two grey levels away from PIL's.
        """
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        side = self.image_size
        if images.shape[-2:] != (side, side):
            shorter = round(side / self.crop_share)
            size = [shorter] if self.resize == "crop" else [side, side]
            images = F.resize(images, size, InterpolationMode(self.interpolation), antialias=True)
            images = F.center_crop(images, [side, side])
        return self.normalise(images)

    def normalise(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) uint8 -> fp32. On a CPU one by one: an image stays in the cache then, and
        the batch takes a third of the time."""
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        pixels = torch.empty(images.shape, device=images.device)
        at_once = 1 if images.device.type == "cpu" else max(1, len(images))
        for target, source in zip(pixels.split(at_once), images.split(at_once)):
            target.copy_(source).mul_(1 / (255 * std)).sub_(mean / std)
        return pixels


class ImageTextModel:
    """Images and sentences to unit vectors of one space.

    Attributes:
        text_encoder: the text side, for ``TextEmbeddingBank``.
        preprocessing: the image side's input: size, mean, std, way of resizing.
        encoder_id: as for ``TextEncoder``; weights and preprocessing decide it.
        dim: D.
        device: where the image tower computes.
        image_tower: ``image_features`` as given.
        logit_scale: factor on the cosine with which the model was trained (exp applied); None:
            the model does not say.
        logit_bias: what its training added to the scaled cosine; SigLIP's sigmoid needs it.

    Args:
        text_encoder: see above.
        image_features: (N, 3, S, S) fp32 preprocessed, on ``device`` -> (N, D), not normalised.
        preprocessing: see above.
        device: see above.
        backbone_features: like ``image_features``, but (N, F) before the projection into the
            common space: what a linear probe sees. None: there is no such thing, it is given D.
        logit_scale: see above.
        logit_bias: see above.
    """

    def __init__(
        self,
        text_encoder: TextEncoder,
        image_features: Callable[[Tensor], Tensor],
        preprocessing: ImagePreprocessing,
        device: str = "cpu",
        backbone_features: Callable[[Tensor], Tensor] | None = None,
        logit_scale: float | None = None,
        logit_bias: float = 0.0,
    ) -> None:
        self.text_encoder = text_encoder
        self.preprocessing = preprocessing
        self.encoder_id = text_encoder.encoder_id
        self.dim = text_encoder.dim
        self.device = device
        self.image_tower = image_features
        self.logit_scale = logit_scale
        self.logit_bias = logit_bias
        self._backbone_features = backbone_features or image_features

    @torch.inference_mode()
    def raw_image_features(self, images: Tensor) -> Tensor:
        """Runs the image tower once.

        Args:
            images: (N, 3, H, W) uint8, RGB, any H and W; preprocessing happens here.

        Returns:
            (N, D) fp32 on ``device``, not normalised.
        """
        pixels = self.preprocessing(images.to(self.device))
        pixels = pixels.contiguous(memory_format=torch.channels_last)  # quicker convolutions
        return self.image_tower(pixels).float()

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeds N images of one size.

        Args:
            images: (N, 3, H, W) uint8, RGB, any H and W; preprocessing happens here.

        Returns:
            (N, D) fp32 on the CPU, rows of L2 norm 1, without gradient.

        Raises:
            OVDError: another shape or type.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise OVDError(
                f"images must be (N, 3, H, W) uint8 RGB, not {tuple(images.shape)} {images.dtype}"
            )
        features = torch.zeros(len(images), self.dim)
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            features[start : start + _BATCH] = self.raw_image_features(batch).cpu()
        return nn.functional.normalize(features, dim=1)

    @torch.inference_mode()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) fp32 from ``preprocessing`` -> (N, D) as ``encode_image``, in one batch."""
        features = self.image_tower(pixels.to(self.device)).float().cpu()
        return nn.functional.normalize(features, dim=1)

    @torch.no_grad()
    def encode_backbone(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) fp32 from ``preprocessing`` -> (N, F) fp32 on the CPU, in one batch: the
        features before the projection, not normalised."""
        return self._backbone_features(pixels.to(self.device)).float().cpu()

    def encode_text(self, texts: list[str]) -> Tensor:
        """Embeds L sentences: (L, D) fp32 on the CPU, rows of L2 norm 1, without gradient."""
        return self.text_encoder.encode(texts)


def logit_facts(model: nn.Module) -> dict[str, float]:
    """``logit_scale`` and ``logit_bias`` of a model that holds them as CLIP and SigLIP do."""
    scale, bias = getattr(model, "logit_scale", None), getattr(model, "logit_bias", None)
    facts = {} if scale is None else {"logit_scale": scale.exp().item()}
    return facts if bias is None else facts | {"logit_bias": bias.item()}
