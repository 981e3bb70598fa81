"""Box proposer that reads MAVL's pickles, as RKD's authors publish them.

The pickles hold, for an image (named without folder and ending), either a pair (boxes, scores):
class-agnostic; or a dict {category id: (boxes, scores)}: of its labels. Boxes are xyxy in pixels of
the original image. One file IMAGE.pkl per image, also in sub-folders, or one .pkl file with a dict
{image name: ...}.

Letters: Ri boxes of image i.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.files.digests import file_digest
from ovd_d2.pseudo_labelling.box_choice import Found
from ovd_d2.region_store.object_centric_ovd import pickles_by_name, published_name
from ovd_d2.region_store.restricted_unpickler import read_restricted_pickle


class PickledBoxes:
    """A :class:`~ovd_d2.proposals.proposer.BoxProposer` out of published pickles.

    Nothing of the pickles is run. An image or label without an entry has no boxes.

    Args:
        path: a .pkl file or a folder of them.
        category_ids: (K,) the data set's id of each class; None: boxes of objects are wanted, and
            those of all labels of an image count as such.
        asked: what named the path, for messages; "": the path.

    Raises:
        OVDError: nothing there, two pickles of one image, or a pickle is refused.
    """

    has_scores = True

    def __init__(
        self, path: str, category_ids: Sequence[int] | None = None, asked: str = ""
    ) -> None:
        source = Path(path)
        self._path = source
        self._category_ids = category_ids
        self._files: dict[str, Path] = {}
        self._content: Mapping[Any, Any] | None = None
        if source.is_dir():
            self._files = pickles_by_name(source)
            listing = "\n".join(f"{n}\0{f.stat().st_size}" for n, f in sorted(self._files.items()))
            digest = hashlib.sha256(listing.encode()).hexdigest()
        elif source.is_file():
            content = read_restricted_pickle(source)
            if not isinstance(content, dict):
                raise OVDError(f"{path} holds a {type(content).__name__}, not a dict of images")
            self._content = {published_name(str(name)): value for name, value in content.items()}
            digest = file_digest(source)
        else:
            what = asked or path
            raise OVDError(f"{what}: there is no such file or folder; give MAVL's pickles")
        self.name = f"mavl:{source.name}@{digest[:12]}"

    def __call__(
        self, record: dict[str, Any], image: Tensor, classes: Sequence[int] | None = None
    ) -> list[Found]:
        """Boxes of one image, as :class:`~ovd_d2.proposals.proposer.BoxProposer` defines them."""
        name = published_name(record["file_name"])
        if self._content is not None:
            where, content = f"{self._path}, image {name},", self._content.get(name, ([], []))
        elif name in self._files:
            where, content = str(self._files[name]), read_restricted_pickle(self._files[name])
        else:
            where, content = "", ([], [])
        if self._category_ids is None:
            pairs = content.values() if isinstance(content, dict) else [content]
            return [_found(pair, where) for pair in pairs]
        if not isinstance(content, dict):
            if where and len(content) == 2 and len(content[0]):
                raise OVDError(
                    f"{where} has boxes without a label: give MAVL's class-specific pickles, or "
                    "ask for objects (--boxes objects)"
                )
            content = {}
        return [_found(content.get(self._category_ids[k], ([], [])), where) for k in classes]


def _found(pair: Any, where: str) -> Found:
    try:
        boxes, scores = (np.asarray(values, dtype=np.float32) for values in pair)
    except (TypeError, ValueError) as error:
        raise OVDError(f"{where} holds something else than boxes and scores") from error
    if boxes.size != 4 * scores.size or (boxes.size and boxes.shape[-1] != 4):
        raise OVDError(f"{where} has {scores.size} scores for boxes of shape {boxes.shape}")
    return torch.from_numpy(boxes.reshape(-1, 4).copy()), torch.from_numpy(scores.ravel().copy())
