"""What can be said about the files of a format."""

from collections.abc import Callable
from dataclasses import dataclass

LOCAL_FILES = "/data/local-files/?d="  # of Label Studio


@dataclass(frozen=True)
class FormatOptions:
    """Choices of those formats that have them.

    Attributes:
        scores: YOLO: the score at the end of each line. The others have scores anyway.
        image_url: Label Studio: what stands before the path of an image.
        copy_images: put the images beside the files, where the format expects them.
        on_image: called after every image.
    """

    scores: bool = False
    image_url: str = LOCAL_FILES
    copy_images: bool = False
    on_image: Callable[[], object] = lambda: None
