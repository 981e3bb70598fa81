"""Image towers of a CLIP model, as parts: any timm network, CLIP's ViT, CLIP's ResNet.

Letters: N images, S side of the input, F feature width, D embedding width.

A tower is described by its ``settings``, plain values that a weights file can carry, so that
``build_image_tower(settings)`` makes the same module again::

    {"kind": "timm", "name": "tf_efficientnet_lite0", "dim": 384, "image_size": 64}
    {"kind": "clip_vit", "dim": 512, "image_size": 224, "patch": 32, "width": 768, "layers": 12}
    {"kind": "clip_resnet", "dim": 1024, "image_size": 224, "layers": [3, 4, 6, 3], "width": 64}
"""

import warnings
from typing import Any

from torch import Tensor, nn

from ovd_d2.encoders.openai_clip import import_clip, resnet_features, vit_features
from ovd_d2.errors import OVDError
from ovd_d2.layers.quick_import import quick_import
from ovd_d2.layers.recompute import RecomputingSequential
from ovd_d2.layers.timm_weights import load_timm_weights

_SETTINGS = {
    "timm": {"name", "dim", "image_size"},
    "clip_vit": {"dim", "image_size", "patch", "width", "layers"},
    "clip_resnet": {"dim", "image_size", "layers", "width"},
}


class TimmImageTower(nn.Module):
    """A timm network without its classifier, and a linear projection without bias.

    Input (N, 3, S, S) float, preprocessed; output (N, D), not normalised.
    """

    def __init__(self, backbone: nn.Module, dim: int) -> None:
        """
        Args:
            backbone: made by ``timm.create_model(..., num_classes=0)``: images -> (N, F).
            dim: D.
        """
        super().__init__()
        self.backbone = backbone
        width = getattr(backbone, "head_hidden_size", None) or backbone.num_features
        self.projection = nn.Linear(width, dim, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def features(self, images: Tensor) -> Tensor:
        """(N, F): what a linear probe sees, before the projection."""
        return self.backbone(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(self.features(images))


class OpenAIViTTower(nn.Module):
    """CLIP's ViT, with CLIP's initialisation. Input and output as :class:`TimmImageTower`."""

    def __init__(
        self,
        *,
        dim: int,
        image_size: int,
        patch: int,
        width: int,
        layers: int,
        checkpoint: bool = False,
    ) -> None:
        """
        Args:
            dim: D.
            image_size: S, a multiple of ``patch``.
            patch: side of a patch in pixels.
            width: of the transformer, a multiple of 64 (one head per 64).
            layers: transformer blocks.
            checkpoint: activations inside blocks are computed again in the backward pass.
        """
        super().__init__()
        if image_size % patch or width % 64:
            raise OVDError(
                f"MODEL.CLIP.IMAGE_SIZE {image_size} must be a multiple of MODEL.CLIP.VIT.PATCH "
                f"{patch}, and MODEL.CLIP.VIT.WIDTH {width} of 64."
            )
        self.visual = import_clip().model.VisionTransformer(
            input_resolution=image_size,
            patch_size=patch,
            width=width,
            layers=layers,
            heads=width // 64,
            output_dim=dim,
        )
        if checkpoint:
            transformer = self.visual.transformer
            transformer.resblocks = RecomputingSequential(*transformer.resblocks)

    def features(self, images: Tensor) -> Tensor:
        """(N, F): the class token after the last layer norm, before the projection."""
        return vit_features(self.visual, images)

    def forward(self, images: Tensor) -> Tensor:
        return self.visual(images)


class OpenAIResNetTower(nn.Module):
    """CLIP's ModifiedResNet with attention pooling, and CLIP's initialisation.

    Input and output as :class:`TimmImageTower`.
    """

    def __init__(
        self, *, dim: int, image_size: int, layers: list[int], width: int, checkpoint: bool = False
    ) -> None:
        """
        Args:
            dim: D.
            image_size: S, a multiple of 32.
            layers: blocks per stage, four numbers.
            width: channels after the stem, a multiple of 2; the last stage has 32 times as many.
            checkpoint: activations inside blocks are computed again in the backward pass.
        """
        super().__init__()
        if image_size % 32 or len(layers) != 4:
            raise OVDError(
                f"MODEL.CLIP.IMAGE_SIZE {image_size} must be a multiple of 32, and "
                f"MODEL.CLIP.RESNET.LAYERS {layers} four numbers."
            )
        self.visual = import_clip().model.ModifiedResNet(
            layers=layers,
            output_dim=dim,
            heads=width * 32 // 64,
            input_resolution=image_size,
            width=width,
        )
        pool = self.visual.attnpool
        for layer in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
            nn.init.normal_(layer.weight, std=pool.c_proj.in_features**-0.5)
        for name, parameter in self.visual.named_parameters():
            if name.startswith("layer") and name.endswith("bn3.weight"):
                nn.init.zeros_(parameter)  # each residual block starts as the identity
        for stage in ("layer1", "layer2", "layer3", "layer4") if checkpoint else ():
            setattr(self.visual, stage, RecomputingSequential(*getattr(self.visual, stage)))

    def features(self, images: Tensor) -> Tensor:
        """(N, F): the mean over the last feature map."""
        return resnet_features(self.visual, images)

    def forward(self, images: Tensor) -> Tensor:
        return self.visual(images)


def build_image_tower(
    settings: dict[str, Any], weights: str = "", checkpoint: bool = False
) -> nn.Module:
    """The tower that ``settings`` describe; see the top of this file.

    Args:
        settings: kind and sizes.
        weights: for "timm": "" random, "timm" timm's own download, or a source of
            ``load_timm_weights``.
        checkpoint: activations inside blocks are computed again in the backward pass; not for
            "timm".

    Raises:
        OVDError: unknown kind or timm model, missing package, sizes that do not fit, or
            ``checkpoint`` for "timm".
    """
    values = dict(settings)
    kind = values.pop("kind", None)
    if kind not in _SETTINGS or values.keys() != _SETTINGS[kind]:
        raise OVDError(
            f"unknown image tower {settings}; MODEL.CLIP.IMAGE_TOWER is one of "
            f"{', '.join(_SETTINGS)}"
        )
    if kind == "clip_vit":
        return OpenAIViTTower(**values, checkpoint=checkpoint)
    if kind == "clip_resnet":
        return OpenAIResNetTower(**values, checkpoint=checkpoint)
    if checkpoint:
        raise OVDError(
            "MODEL.CLIP.CHECKPOINT is for MODEL.CLIP.IMAGE_TOWER clip_vit and clip_resnet, not for "
            "timm: set it to False."
        )
    return TimmImageTower(
        _timm_backbone(values["name"], values["image_size"], weights), values["dim"]
    )


def _timm_backbone(name: str, image_size: int, weights: str) -> nn.Module:
    try:
        timm = quick_import("timm")
    except ImportError as error:
        raise OVDError("MODEL.CLIP.IMAGE_TOWER timm needs timm: run `pip install timm`.") from error
    if name not in timm.list_models():
        raise OVDError(f"MODEL.CLIP.TIMM.NAME {name} is not a timm model: see timm.list_models().")
    options: dict[str, Any] = {"num_classes": 0, "pretrained": weights == "timm"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        try:
            net = timm.create_model(name, img_size=image_size, **options)
        except TypeError:  # convolutional networks take any size
            net = timm.create_model(name, **options)
    if weights not in ("", "timm"):
        load_timm_weights(net, name, weights, "MODEL.CLIP.TIMM.WEIGHTS")
    return net
