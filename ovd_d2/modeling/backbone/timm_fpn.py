"""Any timm network with ``features_only`` support under Detectron2's FPN.

Letters: N images, C channels.
"""

import logging
from functools import partial
from types import ModuleType
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from ovd_d2.encoders.exported import teacher_timm_weights
from ovd_d2.errors import OVDError
from ovd_d2.layers.in_pieces import InPieces
from ovd_d2.layers.quick_import import quick_import
from ovd_d2.layers.timm_weights import load_timm_state, load_timm_weights

logger = logging.getLogger(__name__)


class TimmBackbone(Backbone):
    """A timm network as a Detectron2 backbone.

    Input: (N, 3, H, W) float, colour order and mean / std as the weights expect them
    (``INPUT.FORMAT``, ``MODEL.PIXEL_MEAN``, ``MODEL.PIXEL_STD``). Output: a dict
    "stride8" -> (N, C, H / 8, W / 8) and so on.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        out_strides: list[int],
        freeze_stages: int = 0,
        freeze_norm_stats: bool = True,
    ):
        """
        Args:
            net: made by ``timm.create_model(..., features_only=True)`` with one output per stride
                of ``out_strides``.
            out_strides: strides of ``net``'s outputs.
            freeze_stages: leading feature stages without gradient, norm layers in eval mode.
            freeze_norm_stats: keep all batch norms' running statistics as loaded.
        """
        super().__init__()
        self.net = net
        self.freeze_norm_stats = freeze_norm_stats
        self._out_features = [f"stride{s}" for s in out_strides]
        self._out_feature_strides = dict(zip(self._out_features, out_strides))
        self._out_feature_channels = dict(zip(self._out_features, net.feature_info.channels()))
        frozen = _modules_up_to(net, freeze_stages)
        self._frozen_modules = [m for name, m in net.named_modules() if name in frozen]
        for module in self._frozen_modules:
            module.requires_grad_(False)
        if freeze_stages:
            _run_frozen_in_pieces(net)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._out_features, self.net(x)))

    def train(self, mode: bool = True) -> "TimmBackbone":
        super().train(mode)
        still = self._frozen_modules if mode else []
        for module in still:
            module.eval()
        if mode and self.freeze_norm_stats:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def _modules_up_to(net: nn.Module, stages: int) -> set[str]:
    """Names of the modules that own weights, up to and including stage number ``stages``."""
    if stages == 0:
        return set()
    info = list(net.feature_info.info)
    if stages > len(info):
        raise OVDError(f"MODEL.TIMM.FREEZE_STAGES is {stages}, the network has {len(info)} stages.")
    last = info[stages - 1]["module"].replace(".", "_")
    names, seen = set(), False
    for name, module in net.named_modules():
        inside = name.replace(".", "_") == last or name.replace(".", "_").startswith(last + "_")
        if seen and not inside:
            break
        seen = seen or inside
        if next(module.parameters(recurse=False), None) is not None:
            names.add(name)
    return names


def _load_weights(net: nn.Module, name: str, source: str) -> int:
    """See ``MODEL.TIMM.WEIGHTS``; the number of tensors loaded."""
    key = "MODEL.TIMM.WEIGHTS"
    if source == "mini-teacher" or source.startswith("exported:"):
        path, state = teacher_timm_weights(source, name, key)
        return load_timm_state(net, name, path, state, key)
    return load_timm_weights(net, name, source, key)


def _run_frozen_in_pieces(net: nn.Module) -> None:
    """Makes every ``nn.Sequential`` in ``net`` that learns nothing :class:`InPieces`, in place."""
    for module in net.modules():
        if type(module) is nn.Sequential and not any(p.requires_grad for p in module.parameters()):
            module.__class__ = InPieces  # keeps names, and hooks of timm's feature extraction


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """FPN over a timm network; outputs "p3".. for the strides in MODEL.TIMM.OUT_STRIDES, plus one
    max-pooled level if MODEL.RPN.IN_FEATURES asks for it.

    Raises:
        OVDError: timm missing, unknown model, or weights that do not fit.
    """
    bottom_up = build_timm_backbone(cfg, input_shape)
    levels = [s.bit_length() - 1 for s in cfg.MODEL.TIMM.OUT_STRIDES]
    wants_pooled = f"p{levels[-1] + 1}" in cfg.MODEL.RPN.IN_FEATURES
    top_block = LastLevelMaxPool() if wants_pooled else None
    if top_block is not None:
        top_block.in_feature = f"p{levels[-1]}"
    return fpn_over(cfg, bottom_up, top_block, cfg.MODEL.IMAGE_BRANCH.IN_FEATURE)


@BACKBONE_REGISTRY.register()
def build_retinanet_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """FPN over a timm network with the two further levels of :func:`with_p6_p7`.

    Raises:
        OVDError: as :func:`build_timm_fpn_backbone`.
    """
    return with_p6_p7(cfg, build_timm_backbone(cfg, input_shape))


def with_p6_p7(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """FPN over all outputs of ``bottom_up``, then two levels by strided convolutions of its last
    one (RetinaNet takes them from the backbone's last map instead)."""
    width = cfg.MODEL.FPN.OUT_CHANNELS
    stride = list(bottom_up.output_shape().values())[-1].stride
    top = LastLevelP6P7(width, width, in_feature=f"p{stride.bit_length() - 1}")
    return fpn_over(cfg, bottom_up, top)


class FPNAndInput(FPN):
    """Detectron2's FPN that also hands on one map of its ``bottom_up``, under its name there."""

    def __init__(self, *, also: str, **kwargs: Any) -> None:
        """
        Args:
            also: one of ``in_features``.
            kwargs: of Detectron2's FPN.
        """
        super().__init__(**kwargs)
        self.also = also

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        hook = self.bottom_up.register_forward_hook(lambda _, args, maps: found.update(maps))
        try:
            return {**super().forward(x), self.also: found[self.also]}
        finally:
            hook.remove()

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {**super().output_shape(), self.also: self.bottom_up.output_shape()[self.also]}


def fpn_over(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module | None, also: str = "") -> FPN:
    """Detectron2's FPN over all outputs of ``bottom_up``, as MODEL.FPN says.

    Args:
        also: one more output, a map of ``bottom_up``; "" for none.

    Raises:
        OVDError: ``bottom_up`` has no such map.
    """
    inputs = list(bottom_up.output_shape())
    if also and also not in inputs:
        raise OVDError(
            f'MODEL.IMAGE_BRANCH.IN_FEATURE is "{also}", the backbone has {", ".join(inputs)}: '
            "name one of these, or add its stride to MODEL.TIMM.OUT_STRIDES."
        )
    kind = partial(FPNAndInput, also=also) if also else FPN
    return kind(
        bottom_up=bottom_up,
        in_features=inputs,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def timm_that_has(name: str) -> ModuleType:
    """timm; raises OVDError if it is missing, or has no such model."""
    try:
        timm = quick_import("timm")
    except ImportError as error:
        raise OVDError("MODEL.TIMM needs timm: run `pip install timm`.") from error
    if name not in timm.list_models():
        raise OVDError(f"MODEL.TIMM.NAME {name} is not a timm model: see timm.list_models().")
    return timm


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The network that MODEL.TIMM names, without FPN; outputs "stride4" .. for those of
    MODEL.TIMM.OUT_STRIDES.

    Raises:
        OVDError: timm missing, unknown model, or weights that do not fit.
    """
    keys = cfg.MODEL.TIMM
    timm = timm_that_has(keys.NAME)
    strides = timm.create_model(keys.NAME, features_only=True).feature_info.reduction()
    if not set(keys.OUT_STRIDES) <= set(strides):
        raise OVDError(
            f"MODEL.TIMM.OUT_STRIDES {list(keys.OUT_STRIDES)}: {keys.NAME} offers {strides}."
        )
    net = timm.create_model(
        keys.NAME,
        features_only=True,
        pretrained=keys.WEIGHTS == "timm",
        in_chans=input_shape.channels,
        out_indices=[strides.index(s) for s in keys.OUT_STRIDES],
        **({"drop_path_rate": keys.DROP_PATH_RATE} if keys.DROP_PATH_RATE else {}),
    )
    if keys.CHECKPOINT:
        net.set_grad_checkpointing()
    if keys.WEIGHTS not in ("", "timm"):
        loaded = _load_weights(net, keys.NAME, keys.WEIGHTS)
        logger.info("Loaded %d backbone weights from %s", loaded, keys.WEIGHTS)
    return TimmBackbone(
        net,
        out_strides=list(keys.OUT_STRIDES),
        freeze_stages=keys.FREEZE_STAGES,
        freeze_norm_stats=keys.FREEZE_NORM_STATS,
    )
