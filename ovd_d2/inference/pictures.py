"""Pictures from whatever a caller has: files, folders, arrays, lists and generators of these."""

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ovd_d2.errors import OVDError
from ovd_d2.files.images import Picture, list_images


def is_single(images: Any) -> bool:
    """Whether ``images`` is one picture and not a folder or a list."""
    from PIL import Image

    if isinstance(images, str | os.PathLike):
        return not Path(images).is_dir()
    return isinstance(images, (np.ndarray, Tensor, Image.Image))


def each_picture(images: Any) -> Iterator[tuple[str, Picture]]:
    """(source, picture) of all pictures, folders opened, lazily."""
    if isinstance(images, str | os.PathLike) or is_single(images):
        images = [images]
    if not isinstance(images, Iterable):
        raise OVDError(f"A {type(images).__name__} is no picture and no list of pictures.")
    number = itertools.count(1)
    for picture in images:
        if isinstance(picture, str | os.PathLike):
            for file in list_images(picture):
                yield str(file), file
        else:
            yield f"image {next(number)}", picture
