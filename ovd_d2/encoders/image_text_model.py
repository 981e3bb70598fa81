"""One interface over OpenAI's CLIP, open_clip and transformers' CLIP and SigLIP.

Letters: N images, L sentences, D embedding width.

A model is asked for by a string:

* ``openai-clip:ViT-B/32`` or ``openai-clip:/path/to/file``,
* ``hf:NAME_OR_FOLDER``, a transformers model with an image and a text tower (CLIP, SigLIP, ...),
* ``open_clip:MODEL:PRETRAINED``, for example ``open_clip:ViT-B-32:laion2b_s34b_b79k``;
  PRETRAINED is a tag of open_clip or a weights file,
* ``mini-teacher``, the small teacher that the package ships, or ``mini-teacher:FILE``, one that
  ``ovd clip export`` wrote.

The text side of all but open_clip's is the encoder that ``language.build_text_encoder`` gives for
the same string, with the same ``encoder_id``: region embeddings made here and class embeddings
made there belong together.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ovd_d2.encoders import huggingface as huggingface_text
from ovd_d2.encoders import openai_clip
from ovd_d2.encoders.image_towers import resnet_features, vit_features
from ovd_d2.encoders.registry import TextEncoder
from ovd_d2.errors import OVDError

# OpenAI's CLIP (radford et al. 2021, released code): RGB, after division by 255.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_BATCH = 64
_BILINEAR, _BICUBIC = 2, 3  # PIL's numbers, as preprocessor_config.json writes them


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
    """

    image_size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    resize: Literal["crop", "squash"] = "crop"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 RGB -> (N, 3, image_size, image_size) fp32, normalised.

        Images that have that size already are not resampled. Resampling happens on uint8, at most
        two grey levels away from PIL's.
        """
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        side = self.image_size
        if images.shape[-2:] != (side, side):
            size = [side] if self.resize == "crop" else [side, side]
            images = F.resize(images, size, InterpolationMode(self.interpolation), antialias=True)
            images = F.center_crop(images, [side, side])
        return self._normalise(images)

    def _normalise(self, images: Tensor) -> Tensor:
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

    Args:
        text_encoder: see above.
        image_features: (N, 3, S, S) fp32 preprocessed, on ``device`` -> (N, D), not normalised.
        preprocessing: see above.
        device: see above.
        backbone_features: like ``image_features``, but (N, F) before the projection into the
            common space: what a linear probe sees. None: there is no such thing, it is given D.
    """

    def __init__(
        self,
        text_encoder: TextEncoder,
        image_features: Callable[[Tensor], Tensor],
        preprocessing: ImagePreprocessing,
        device: str = "cpu",
        backbone_features: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.text_encoder = text_encoder
        self.preprocessing = preprocessing
        self.encoder_id = text_encoder.encoder_id
        self.dim = text_encoder.dim
        self.device = device
        self.image_tower = image_features
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


def build_image_text_model(spec: str, device: str = "cpu") -> ImageTextModel:
    """Loads a model; see the top of this file for ``spec``.

    The global random state is left as it was.

    Raises:
        OVDError: unknown kind, missing package, file or model, or a model without image tower.
    """
    scheme, _, rest = spec.partition(":")
    builders = {
        "openai-clip": _openai_clip,
        "hf": _huggingface,
        "open_clip": _open_clip,
        "mini-teacher": _mini_teacher,
    }
    if scheme not in builders or (not rest and spec != "mini-teacher"):
        raise OVDError(
            f"unknown image-text model '{spec}'; use openai-clip:NAME_OR_FILE, "
            "hf:NAME_OR_FOLDER, open_clip:MODEL:PRETRAINED or mini-teacher"
        )
    with torch.random.fork_rng(devices=[]):
        return builders[scheme](rest, device)


def _openai_clip(name_or_file: str, device: str) -> ImageTextModel:
    encoder = openai_clip.OpenAIClipTextEncoder.from_spec(name_or_file, device)
    preprocessing = ImagePreprocessing(encoder.model.visual.input_resolution)
    visual = encoder.model.visual
    vit = hasattr(visual, "proj")
    return ImageTextModel(
        encoder, encoder.model.encode_image, preprocessing, device,
        backbone_features=lambda pixels: (vit_features if vit else resnet_features)(visual, pixels),
    )  # fmt: skip


def _huggingface(name_or_folder: str, device: str) -> ImageTextModel:
    folder = huggingface_text.model_folder(name_or_folder)
    encoder = huggingface_text.build(folder, device)
    kind = encoder.model.config.model_type
    # SigLIP 2 with variable resolution reads patches; its fixed-size models are of type "siglip".
    if kind == "siglip2" or not hasattr(encoder.model, "get_image_features"):
        raise OVDError(
            f"{folder} holds a '{kind}' model, which has no image tower of fixed size; "
            "give a CLIP or SigLIP model"
        )

    def image_features(pixels: Tensor) -> Tensor:
        features = encoder.model.get_image_features(pixel_values=pixels)
        return features if isinstance(features, Tensor) else features.pooler_output

    return ImageTextModel(encoder, image_features, _huggingface_preprocessing(folder), device)


def _huggingface_preprocessing(folder: Path) -> ImagePreprocessing:
    """What the folder's preprocessor_config.json says, if it is of one of the two known kinds."""
    path = folder / "preprocessor_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        size = settings.get("size", 224)
        if not isinstance(size, dict):  # configurations of old versions
            size = {"shortest_edge": size}
        squash = "shortest_edge" not in size
        side = size["height"] if squash else size["shortest_edge"]
        crop = settings.get("crop_size", side)
        crop = crop["height"] if isinstance(crop, dict) else crop
        resample = settings.get("resample", _BICUBIC)
        if resample not in (_BILINEAR, _BICUBIC) or (squash and size["width"] != side):
            raise ValueError(f"size {size}, resample {resample}")
        if not squash and crop != side:
            raise ValueError(f"shortest edge {side} but crop {crop}")
        return ImagePreprocessing(
            image_size=int(side),
            mean=tuple(float(value) for value in settings["image_mean"]),
            std=tuple(float(value) for value in settings["image_std"]),
            resize="squash" if squash else "crop",
            interpolation="bicubic" if resample == _BICUBIC else "bilinear",
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OVDError(
            f"cannot tell from {path} how images are prepared ({error}); "
            "give the model's complete folder"
        ) from error


def _mini_teacher(rest: str, device: str) -> ImageTextModel:
    from ovd_d2.encoders.exported_teacher import build_exported_teacher

    return build_exported_teacher(rest, device)


class _OpenClipTextEncoder:
    """The text tower of an open_clip model, as a ``TextEncoder``."""

    def __init__(self, model: nn.Module, tokenizer: Any, encoder_id: str, device: str) -> None:
        self.model = model
        self.encoder_id = encoder_id
        self._tokenizer = tokenizer
        self._device = device
        self.dim = self._features(["a"]).shape[1]

    def encode(self, texts: list[str]) -> Tensor:
        """Embeds L sentences: (L, D) fp32 on the CPU, rows of L2 norm 1; cut if over-long."""
        batches = [
            self._features(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)
        ]
        features = torch.cat(batches) if batches else torch.zeros(0, self.dim)
        return nn.functional.normalize(features, dim=1)

    @torch.no_grad()
    def _features(self, texts: list[str]) -> Tensor:
        return self.model.encode_text(self._tokenizer(texts).to(self._device)).float().cpu()


def _open_clip(rest: str, device: str) -> ImageTextModel:
    name, _, pretrained = rest.partition(":")
    if not pretrained:
        raise OVDError(
            f"image-text model 'open_clip:{rest}' does not say its weights; "
            "write open_clip:MODEL:TAG_OR_FILE"
        )
    try:
        import open_clip
    except ImportError as error:
        raise OVDError(
            f"open_clip cannot be imported ({error}); run: pip install 'open_clip_torch>=3'"
        ) from error
    try:
        model = open_clip.create_model(
            name,
            pretrained=pretrained,
            precision="fp32",
            weights_only=True,
            require_pretrained=True,
        )
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # unknown names, no network, damaged files: each its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OVDError(
            f"open_clip cannot load model '{name}' with weights '{pretrained}' ({reason}); fetch "
            "the weights file where there is a network: open_clip:MODEL:/path/to/file"
        ) from error
    model = model.eval().requires_grad_(False).to(device)
    settings = model.visual.preprocess_cfg
    sides = settings["size"] if isinstance(settings["size"], (tuple, list)) else [settings["size"]]
    if len(set(sides)) > 1 or settings["resize_mode"] not in ("shortest", "squash"):
        raise OVDError(f"open_clip model '{name}' prepares images as {settings}; not supported")
    preprocessing = ImagePreprocessing(
        image_size=int(sides[0]),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        resize="crop" if settings["resize_mode"] == "shortest" else "squash",
        interpolation=settings["interpolation"],
    )
    identity = f"open_clip:{name}@{_weights_digest(model)[:12]}"
    encoder = _OpenClipTextEncoder(model, tokenizer, identity, device)
    return ImageTextModel(encoder, model.encode_image, preprocessing, device)


def _weights_digest(model: nn.Module) -> str:
    """Sha256 over names, shapes and values: open_clip does not tell which file a tag became."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}\0{tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
