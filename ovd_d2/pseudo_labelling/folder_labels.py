"""Image-level labels from names of folders (ImageNet-LVIS, as RKD and Detic use it)."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import PurePath

from ovd_d2.language import Vocabulary

from .caption_labels import CaptionLabeller

_SYNSET = re.compile(r"(.+)\.[nvars]\.\d\d")


class FolderLabeller:
    """The class that a folder's name says.

    A folder is called by a class name or synonym ("aerosol_can", "Spray can"), or by an LVIS
    class's synset ("aerosol.n.02"); what it is called may be looked up first ("n02688443").

    Args:
        vocabulary: K classes.
        folder_names: what folders are called, by folder name.
    """

    def __init__(
        self, vocabulary: Vocabulary, folder_names: Mapping[str, str] | None = None
    ) -> None:
        self._find = CaptionLabeller(vocabulary)
        self._names = {name: index for index, name in enumerate(vocabulary.names)}
        self._folder_names = dict(folder_names or {})
        self._known: dict[str, int | None] = {}

    def __call__(self, file_name: str) -> int | None:
        """The class of the innermost folder of ``file_name`` (relative) that says one."""
        for folder in reversed(PurePath(file_name).parts[:-1]):
            if folder not in self._known:
                self._known[folder] = self.class_of(self._folder_names.get(folder, folder))
            if self._known[folder] is not None:
                return self._known[folder]
        return None

    def class_of(self, name: str) -> int | None:
        """The class that ``name`` says; None if there is none."""
        if name in self._names:
            return self._names[name]
        synset = _SYNSET.fullmatch(name)
        if synset is None:
            return self._find.classes_of(name)
        for known in _lvis_synsets().get(name, ()):
            if known in self._names:
                return self._names[known]
        return None if name in _lvis_synsets() else self._find.classes_of(synset[1])


@cache
def _lvis_synsets() -> dict[str, tuple[str, ...]]:
    """LVIS v1: synset -> name and synonyms."""
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

    return {c["synset"]: (c["name"], *c["synonyms"]) for c in LVIS_CATEGORIES}
