"""Whether the model of a config is open-vocabulary, known before it is built."""

from detectron2.config import CfgNode
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    ROI_HEADS_REGISTRY,
    GeneralizedRCNN,
    ProposalNetwork,
    SemanticSegmentor,
)
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

from ovd_d2.errors import OVDError

_WITHOUT_ROI_HEADS = (DenseDetector, ProposalNetwork, SemanticSegmentor)


def has_open_vocabulary(cfg: CfgNode) -> bool:
    """Whether classes of the model are names that can be swapped: the meta-architecture has
    ``set_vocabulary``, or has ROI heads that do.

    A meta-architecture that is not one of Detectron2's, nor derived from them, is taken to use the
    ROI heads that the config names.
    """
    arch = _registered(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE)
    if hasattr(arch, "set_vocabulary"):
        return True
    return not _lacks_roi_heads(arch) and _has_open_head(cfg)


def reads_captions(cfg: CfgNode) -> bool:
    """Whether the model takes samples with a ``caption`` and finds its phrases; architectures that
    no registry knows yet are taken to."""
    arch = _registered(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE)
    return arch is None or getattr(arch, "reads_captions", False)


def answers_questions(cfg: CfgNode) -> bool:
    """Whether the model reads an image once and is then asked for objects in words, as often as one
    likes (MAVL): the meta-architecture has ``ask``."""
    return hasattr(_registered(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE), "ask")


def brings_weights(cfg: CfgNode) -> bool:
    """Whether the model is a trained one without MODEL.WEIGHTS: the meta-architecture says so."""
    arch = _registered(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE)
    return getattr(arch, "brings_weights", False)


def gives_image_features(cfg: CfgNode) -> bool:
    """Whether the model gives ``image_features`` for ``TEST.LINEAR_PROBE``: the meta-architecture
    says so."""
    arch = _registered(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE)
    return getattr(arch, "gives_image_features", False)


def check_heads_are_used(cfg: CfgNode) -> None:
    """Raises OVDError if the config names open-vocabulary ROI heads for a meta-architecture that
    has no ROI heads, such as RetinaNet: its classes would be a fixed set without a word."""
    arch = cfg.MODEL.META_ARCHITECTURE
    if _lacks_roi_heads(_registered(META_ARCH_REGISTRY, arch)) and _has_open_head(cfg):
        raise OVDError(
            f"MODEL.META_ARCHITECTURE {arch} has no ROI heads, so MODEL.ROI_HEADS.NAME "
            f"{cfg.MODEL.ROI_HEADS.NAME} would not be used and its classes would be a fixed set: "
            "set META_ARCHITECTURE GeneralizedRCNN for an open vocabulary, or ROI_HEADS.NAME "
            "StandardROIHeads for a fixed one."
        )


def _has_open_head(cfg: CfgNode) -> bool:
    return hasattr(_registered(ROI_HEADS_REGISTRY, cfg.MODEL.ROI_HEADS.NAME), "set_vocabulary")


def _lacks_roi_heads(arch: object) -> bool:
    if not isinstance(arch, type) or issubclass(arch, GeneralizedRCNN):
        return False
    return issubclass(arch, _WITHOUT_ROI_HEADS)


def _registered(registry: object, name: str) -> object:
    """What a registry has under ``name``; None for nothing, which building the model will say."""
    return registry.get(name) if name in registry else None
