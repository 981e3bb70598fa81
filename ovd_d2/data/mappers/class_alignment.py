"""Class numbers of a data set -> those of the model.

Letter: K classes of the data set.
"""

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.model_kind import has_open_vocabulary
from ovd_d2.errors import OVDError
from ovd_d2.language import LATER, Vocabulary
from ovd_d2.language.class_places import class_places
from ovd_d2.language.dataset_classes import class_names


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
    wanted = trained_names(cfg)
    if wanted is None:
        return None
    return class_places(cfg.DATASETS.TRAIN[0], _class_names(cfg.DATASETS.TRAIN[0]), wanted)


def trained_names(cfg: CfgNode) -> tuple[str, ...] | None:
    """The names whose places are the class numbers of training targets, once they are mapped by
    :func:`class_map`; None for what that leaves alone."""
    if not cfg.DATASETS.TRAIN or not has_open_vocabulary(cfg):
        return None
    names = _class_names(cfg.DATASETS.TRAIN[0])
    if names is None:
        return None
    wanted = cfg.MODEL.OPEN_VOCAB.VOCABULARY
    if wanted == LATER:
        raise OVDError(
            "MODEL.OPEN_VOCAB.VOCABULARY is later, but training needs its classes at once: name "
            'them, or set "" for those of DATASETS.TRAIN.'
        )
    return Vocabulary.load(wanted).names if wanted else tuple(names)


def _class_names(dataset: str) -> list[str] | None:
    """The classes of a data set, which is loaded if they are known only then; None for none."""
    metadata = MetadataCatalog.get(dataset)
    if class_names(metadata) is None and dataset in DatasetCatalog:
        DatasetCatalog.get(dataset)
    return class_names(metadata)
