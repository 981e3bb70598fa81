"""Class numbers of a data set -> those of the model.

Letter: K classes of the data set.
"""

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import ROI_HEADS_REGISTRY

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary

_NAMED_AT_MOST = 5


def class_map(cfg: CfgNode) -> list[int] | None:
    """Where the classes of ``DATASETS.TRAIN`` are in the vocabulary that the model trains with.

    That is ``MODEL.OPEN_VOCAB.VOCABULARY``, or else the classes of the training data themselves.
    Models of a fixed number of classes, and data sets that do not name theirs, are left alone.

    Args:
        cfg: the config.

    Returns:
        K positions in the vocabulary; None if every class is at its own already.

    Raises:
        OVDError: the data have classes that the vocabulary lacks.
    """
    wanted = cfg.MODEL.OPEN_VOCAB.VOCABULARY
    if not wanted or not cfg.DATASETS.TRAIN or not has_open_vocabulary(cfg):
        return None
    names = _class_names(cfg.DATASETS.TRAIN[0])
    if names is None:
        return None
    place = {name: index for index, name in enumerate(Vocabulary.load(wanted).names)}
    missing = [name for name in names if name not in place]
    if missing:
        shown = ", ".join(repr(name) for name in missing[:_NAMED_AT_MOST])
        more = f" and {len(missing) - _NAMED_AT_MOST} more" if missing[_NAMED_AT_MOST:] else ""
        raise OVDError(
            f"DATASETS.TRAIN {cfg.DATASETS.TRAIN[0]} has the classes {shown}{more}, which the "
            "model's vocabulary lacks: MODEL.OPEN_VOCAB.VOCABULARY, or else the first data set of "
            "DATASETS.TRAIN outside of DATASETS.SOURCES, must name them all."
        )
    places = [place[name] for name in names]
    return None if places == list(range(len(places))) else places


def has_open_vocabulary(cfg: CfgNode) -> bool:
    """Whether the ROI heads classify by names: they have ``set_vocabulary``."""
    name = cfg.MODEL.ROI_HEADS.NAME
    return name in ROI_HEADS_REGISTRY and hasattr(ROI_HEADS_REGISTRY.get(name), "set_vocabulary")


def _class_names(dataset: str) -> list[str] | None:
    """The classes of a data set, which is loaded if they are known only then; None for none."""
    metadata = MetadataCatalog.get(dataset)
    if metadata.get("thing_classes") is None and dataset in DatasetCatalog:
        DatasetCatalog.get(dataset)
    names = metadata.get("thing_classes")
    return None if names is None else list(names)
