"""Class numbers of targets and of test data sets against those of the vocabulary.

Letters: Ri target rows of image i, K classes of the vocabulary.
"""

import logging
from collections.abc import Sequence

import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager
from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary
from ovd_d2.language.class_places import class_places
from ovd_d2.language.dataset_classes import class_names
from ovd_d2.structures.class_numbering import CLASS_NUMBERING, numbering_of

logger = logging.getLogger(__name__)

IGNORED = -1  # in label maps: a pixel that does not count


class ClassNumbers:
    """Knows how the data sets number their classes: by the names in their metadata.

    Rows that a mapper has marked (``structures.class_numbering``) are of the vocabulary already.
    Other rows are as the training data set numbers them, as everywhere in Detectron2. They are
    taken to be of the vocabulary where that data set does not name its classes or there is none,
    and, with a warning, where names tell nothing: the vocabulary has none of them (other words for
    them, perhaps), or lacks some and the data set is not on this machine, so that the rows cannot
    be its.
    """

    def __init__(self, train_dataset: str = "", test_datasets: Sequence[str] = ()) -> None:
        """
        Args:
            train_dataset: names the classes of unmarked rows; "" for none.
            test_datasets: what a trainer evaluates on.
        """
        self.train_dataset = train_dataset
        self.test_datasets = tuple(test_datasets)
        self._numbering: tuple[Vocabulary | None, int] = (None, 0)
        self._places: tuple[Vocabulary | None, list[str], tuple[bool, Tensor | None]] = (
            None, [], (False, None)
        )  # fmt: skip

    def of_vocabulary(self, rows: Sequence[Instances], vocabulary: Vocabulary) -> list[Instances]:
        """The same rows with ``gt_classes`` in [0, K), which are left as they are where they
        already are places in the vocabulary.

        Args:
            rows: per image, with ``gt_classes`` (Ri,) int64.
            vocabulary: the model's K classes.

        Raises:
            OVDError: a number that no class has, a class that a vocabulary with others of the data
                set lacks, or rows that were mapped to another vocabulary.
        """
        self._check_marked([r for r in rows if r.has(CLASS_NUMBERING)], vocabulary)
        unmarked = [r for r in rows if not r.has(CLASS_NUMBERING)]
        if not unmarked:
            return list(rows)
        names = _names_of(self.train_dataset)
        of_dataset, places = self._places_in(vocabulary, names, unmarked[0].gt_classes.device)
        if of_dataset:
            _check_range(unmarked, len(names or ()), f"DATASETS.TRAIN {self.train_dataset}")
        else:
            _check_range(unmarked, len(vocabulary), "the model's vocabulary")
        if places is None:
            return list(rows)
        return [r if r.has(CLASS_NUMBERING) else _with_classes(r, places) for r in rows]

    def map_of_vocabulary(self, maps: Tensor, vocabulary: Vocabulary, ignore: int) -> Tensor:
        """The same label maps with places in the vocabulary, or IGNORED.

        Args:
            maps: any shape, int64: class numbers of the training data set, see the class.
            vocabulary: the model's K classes.
            ignore: value in ``maps`` of pixels that do not count.

        Raises:
            OVDError: a number that no class has, or a class that a vocabulary with others of the
                data set lacks.
        """
        names = _names_of(self.train_dataset)
        of_dataset, places = self._places_in(vocabulary, names, maps.device)
        count = len(names or ()) if of_dataset else len(vocabulary)
        whose = f"DATASETS.TRAIN {self.train_dataset}" if of_dataset else "the model's vocabulary"
        maps = self.checked_map(maps, count, ignore, whose)
        if places is None:
            return maps
        return torch.cat([places, places.new_tensor([IGNORED])])[maps]  # IGNORED is the last place

    @staticmethod
    def checked_map(maps: Tensor, count: int, ignore: int, whose: str) -> Tensor:
        """``maps``, any shape, int64, with IGNORED in the place of ``ignore``.

        Args:
            maps: class numbers from 0 to ``count`` - 1, or ``ignore``.
            count: of classes.
            ignore: see :meth:`map_of_vocabulary`.
            whose: classes these are, for the message.

        Raises:
            OVDError: another number, or an ``ignore`` that is the number of a class.
        """
        if 0 <= ignore < count:
            raise OVDError(
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE {ignore} is the number of a class, for {whose} "
                f"has {count}: set a value that no class has."
            )
        ignored = maps == ignore
        counted = maps.masked_fill(ignored, 0)
        for number in torch.stack(counted.aminmax()).tolist():  # one copy to the host
            if not 0 <= number < count:
                raise OVDError(
                    f"A label map has the class number {number}, but {whose} has {count} classes, "
                    f"from 0 to {count - 1}: mend the maps, or set "
                    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE if this number means no class."
                )
        return counted.masked_fill(ignored, IGNORED)

    def numbered_otherwise(self, vocabulary: Vocabulary) -> tuple[str, list[str]] | None:
        """The first test data set whose classes do not have the numbers of the model's, and their
        names; None if all that is known of them fits. Names of the vocabulary behind those of the
        data set do no harm."""
        for dataset in self.test_datasets:
            names = _names_of(dataset)
            if names is not None and vocabulary.names[: len(names)] != tuple(names):
                return dataset, names
        return None

    def _check_marked(self, rows: Sequence[Instances], vocabulary: Vocabulary) -> None:
        if not rows:
            return
        if self._numbering[0] is not vocabulary:
            self._numbering = (vocabulary, numbering_of(vocabulary.names))
        marks = torch.cat([r.get(CLASS_NUMBERING) for r in rows])
        if len(marks) and (marks != self._numbering[1]).any():
            raise OVDError(
                "The class numbers of the targets are places in another vocabulary than the "
                f"model's {len(vocabulary)} names: build model and loader from one config, or give "
                "the model its training vocabulary back before training goes on, as "
                "ovd_d2.vocabulary_for does."
            )
        _check_range(rows, len(vocabulary), "the model's vocabulary")

    def _places_in(
        self, vocabulary: Vocabulary, names: list[str] | None, device: torch.device
    ) -> tuple[bool, Tensor | None]:
        """Whether numbers are the data set's, and (number of ``names``,) int64 places in the
        vocabulary; None for them if the numbers are that already."""
        if names is None:
            return False, None
        before, for_names, rule = self._places
        if before is vocabulary and for_names == names:
            return rule
        rule = self._rule(vocabulary, names, device)
        self._places = (vocabulary, names, rule)
        return rule

    def _rule(
        self, vocabulary: Vocabulary, names: list[str], device: torch.device
    ) -> tuple[bool, Tensor | None]:
        """As :meth:`_places_in`, and says what is done."""
        try:
            found = class_places(self.train_dataset, names, vocabulary.names)
        except OVDError as error:
            if not set(names).isdisjoint(vocabulary.names) and _is_here(self.train_dataset):
                raise OVDError(
                    f"{error} Targets that the vocabulary numbers already want DATASETS.TRAIN ()."
                ) from None
            logger.warning(
                "%s Nothing tells which is which, so class numbers of targets are taken as places "
                "in the vocabulary; DATASETS.TRAIN () says that they are.", error,
            )  # fmt: skip
            return False, None
        if found is None:
            return True, None
        moved = next(number for number, place in enumerate(found) if place != number)
        logger.warning(
            "DATASETS.TRAIN %s numbers its classes otherwise than the model's vocabulary: they are "
            "mapped by name (%s, number %d, becomes %d).",
            self.train_dataset, names[moved], moved, found[moved],
        )  # fmt: skip
        return True, torch.tensor(found, device=device)


def _names_of(dataset: str) -> list[str] | None:
    """Its classes by its metadata, as far as that is known yet; nothing is loaded for it."""
    return class_names(MetadataCatalog.get(dataset)) if dataset in MetadataCatalog else None


def _is_here(dataset: str) -> bool:
    """Whether the files that the data set's metadata name are on this machine."""
    metadata = MetadataCatalog.get(dataset)
    named = [metadata.get(key) for key in ("json_file", "dirname", "gt_dir", "image_root")]
    files = [file for file in named if file]
    return not files or any(PathManager.exists(str(file)) for file in files)


def _check_range(rows: Sequence[Instances], count: int, whose: str) -> None:
    classes = torch.cat([r.gt_classes for r in rows])
    if not len(classes):
        return
    for number in torch.stack(classes.aminmax()).tolist():  # one copy to the host
        if not 0 <= number < count:
            raise OVDError(
                f"A target has class number {number}, but {whose} has {count} classes, from 0 to "
                f"{count - 1}: the mapper must give contiguous ones (category_id of the "
                "records)."
            )


def _with_classes(rows: Instances, places: Tensor) -> Instances:
    """A copy of ``rows`` that shares all fields but ``gt_classes``."""
    mapped = Instances(rows.image_size, **rows.get_fields())
    mapped.gt_classes = places[rows.gt_classes]
    return mapped
