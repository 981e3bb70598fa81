"""What is a video, by its name."""

import os
from collections.abc import Iterable
from pathlib import Path

from ovd_d2.errors import OVDError

SUFFIXES = (".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
            ".mts", ".ogv", ".ts", ".webm", ".wmv")  # fmt: skip
STREAMS = ("http", "https", "rtmp", "rtmps", "rtsp", "rtsps", "srt", "tcp", "udp")


def stream_scheme(source: str | os.PathLike) -> str:
    """The scheme of an address, rtsp of rtsp://... and so on; "" of anything else. A path made of
    an address has one slash less."""
    scheme, colon, rest = os.fspath(source).partition(":")
    return scheme.lower() if colon and rest.startswith("/") and len(scheme) > 1 else ""


def refuse_videos(paths: Iterable[str | os.PathLike]) -> None:
    """Raises OVDError if one of ``paths``, which are to be images, is a video by its name."""
    for path in paths:
        is_file = Path(path).suffix.lower() in SUFFIXES and not Path(path).is_dir()
        if is_file or stream_scheme(path) in STREAMS:
            raise OVDError(f"{path} is a video, not an image: give it to `ovd video`.")
