"""Videos through PyAV: frames of files, cameras and network streams; and annotated videos.

Letters: H, W height and width of a frame as a player shows it.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from ovd_d2.errors import OVDError, reason
from ovd_d2.files.atomic import is_special_file
from ovd_d2.files.images import MAX_PIXELS
from ovd_d2.files.images import SUFFIXES as IMAGE_SUFFIXES
from ovd_d2.files.videos import STREAMS, stream_scheme

DEFAULT_RATE = Fraction(25)  # frames a second, of what does not say
CAMERA_FORMATS = {"linux": "v4l2", "darwin": "avfoundation"}
NETWORK_TIMEOUT = 15.0  # seconds without data
LONGEST_GAP = 86_400.0  # seconds; a time stamp that is further off is damaged
PLAIN_TIME_BASE = Fraction(1, 60_000)  # MPEG-4 allows no finer one than 1 / 65535


@dataclass(frozen=True)
class VideoImage:
    """One frame of a video.

    Attributes:
        number: counted from the first frame, 0.
        seconds: after the first frame; larger than that of the frame before.
        pixels: (H, W, 3) uint8, RGB, turned as the video says.
    """

    number: int
    seconds: float
    pixels: np.ndarray


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise OVDError(f"Videos need PyAV ({error}): run pip install 'ovd_d2[video]'.") from error
    return av


class VideoSource:
    """A video that is open; a context manager. Iterating gives its :class:`VideoImage`, once.

    Frames of different sizes are given as they are. What cannot be decoded is left out and counted;
    damaged time stamps are replaced by that of the frame before and the frame rate.

    Attributes:
        source: what was opened, without the password of an address.
        name: what outputs are called after.
        is_live: a camera or an endless stream, which cannot be read twice.
        rate: frames a second.
        time_base: the unit of its time stamps, in seconds.
        length: how many frames it says it has, roughly; None: it does not say.
        damaged: packets that could not be decoded so far.
    """

    def __init__(self, source: str, *, max_pixels: int = MAX_PIXELS) -> None:
        """
        Args:
            source: a file, the number of a camera or its device (0, /dev/video0), or an address
                (rtsp://, http:// and so on).
            max_pixels: larger frames are refused; 0: no limit.

        Raises:
            OVDError: it is not there, no video, or cannot be read.
        """
        self._errors = _av().error.FFmpegError
        self.damaged, self._max_pixels = 0, max_pixels
        path, options, self.name = _how_to_open(str(source))
        self.source = re.sub("(?<=://)[^/@]*@", "", str(source))
        try:
            self._container = _av().open(path, metadata_errors="replace", **options)
        except (self._errors, OSError, ValueError) as error:
            raise self._unreadable(error) from error
        try:
            self._stream = self._video_stream()
            self._check_size(self._stream.codec_context.width, self._stream.codec_context.height)
        except BaseException:
            self._container.close()
            raise
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.rate = rate if rate and Fraction(1, 1000) <= rate <= 1000 else DEFAULT_RATE
        self.time_base = self._stream.time_base or PLAIN_TIME_BASE
        self.length = self._said_length()
        is_file = not options
        self.is_live = "format" in options or (not is_file and self.length is None)

    def __enter__(self) -> "VideoSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file, camera or stream."""
        self._container.close()

    def __iter__(self) -> Iterator[VideoImage]:
        origin, before, step = None, -1.0, float(1 / self.rate)
        for number, frame in enumerate(self._frames()):
            stamp = None if frame.pts is None else float(frame.pts * self.time_base)
            if origin is None and stamp is not None:
                origin = stamp - (before + step if number else 0.0)
            seconds = None if stamp is None else stamp - origin
            if seconds is None or not before < seconds < before + LONGEST_GAP:
                seconds = before + step if number else 0.0
            before = seconds
            self._check_size(frame.width, frame.height)
            yield VideoImage(number, round(seconds, 6), _upright(frame))

    def _frames(self) -> Iterator[Any]:
        """What can be decoded; ends where reading ends or fails."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (self._errors, OSError):
                self.damaged += 1
                packet = None  # the decoder may hold frames yet
            try:
                context = self._stream.codec_context
                decoded = context.decode(None) if packet is None else packet.decode()
            except (self._errors, OSError, ValueError):
                decoded = []
                self.damaged += 1
            yield from decoded
            if packet is None:
                return

    def _video_stream(self) -> Any:
        cover = _av().stream.Disposition.attached_pic
        streams = [s for s in self._container.streams.video if not s.disposition & cover]
        if not streams:
            what = "sound alone" if self._container.streams.audio else "no pictures"
            raise OVDError(f"{self.source} holds {what}: give a video.")
        if streams[0].codec_context is None:
            raise OVDError(f"{self.source} cannot be decoded: PyAV has no decoder for it.")
        return streams[0]

    def _said_length(self) -> int | None:
        frames = self._stream.frames
        if not frames and self._container.duration:
            frames = round(self._container.duration / 1e6 * self.rate)
        return frames if 0 < frames < 1e9 else None

    def _check_size(self, width: int, height: int) -> None:
        if self._max_pixels and width * height > self._max_pixels:
            raise OVDError(
                f"{self.source}: frames of {width} x {height} pixels are more than "
                f"INPUT.MAX_PIXELS = {self._max_pixels}; make them smaller or raise the limit."
            )

    def _unreadable(self, error: Exception) -> OVDError:
        why = getattr(error, "strerror", None) or reason(error)
        return OVDError(f"Cannot read the video {self.source}: {why.rstrip('.')}.")


def _how_to_open(source: str) -> tuple[str, dict[str, Any], str]:
    """What PyAV opens, with which options, and what outputs are called."""
    path = Path(source)
    camera = source.removeprefix("/dev/video")
    if camera.isdecimal() and camera.isascii() and not path.is_file():
        if sys.platform not in CAMERA_FORMATS:
            raise OVDError(f"{source}: cameras can be opened on Linux and macOS; give a stream.")
        if sys.platform == "linux" and not Path(f"/dev/video{camera}").exists():
            raise OVDError(f"There is no camera {source}: /dev/video{camera} is not there.")
        device = f"/dev/video{camera}" if sys.platform == "linux" else camera
        return device, {"format": CAMERA_FORMATS[sys.platform]}, f"camera{camera}"
    if scheme := stream_scheme(source):
        if scheme not in STREAMS:
            raise OVDError(f"{source}: streams begin with {'://, '.join(STREAMS)}://.")
        name = Path(source.partition("://")[2].partition("?")[0]).stem
        return source, {"timeout": NETWORK_TIMEOUT}, name or "stream"
    if not path.exists():
        raise OVDError(f"There is no video {source}.")
    if path.is_dir():
        raise OVDError(f"{source} is a folder: give one video.")
    if is_special_file(path):
        raise OVDError(f"{source} is no plain file but a pipe or a device: give a video file.")
    if path.suffix.lower() in IMAGE_SUFFIXES and path.suffix.lower() != ".gif":
        raise OVDError(f"{source} is an image: give it to `ovd predict`.")
    return str(path.absolute()), {}, path.stem


def _upright(frame: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned by the frame's display matrix."""
    pixels = frame.to_ndarray(format="rgb24")
    quarters = round(frame.rotation / 90) % 4  # degrees against the clock
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels


class VideoWriter:
    """Writes an MP4 of frames (H, W, 3) uint8 RGB; a context manager. H.264 where PyAV has an
    encoder for it, else MPEG-4.

    All frames get the size of the first one, plus one pixel where that is odd, which H.264 does not
    know; those of other sizes are made to fit, with black bars.

    Args:
        path: the file, which a failure leaves incomplete.
        rate: frames a second, for what is said about the file; the times of frames are their own.
        time_base: the unit of these times, in seconds.
    """

    def __init__(self, path: Path, rate: Fraction, time_base: Fraction) -> None:
        self._path, self._rate, self._time_base = path, rate, time_base
        self._container: Any = None
        self._last = -1

    def write(self, pixels: np.ndarray, seconds: float) -> None:
        """Adds a frame, to be shown at ``seconds`` (later than the one before).

        Raises:
            OVDError: it cannot be encoded or written.
        """
        av = _av()
        try:
            if self._container is None:
                self._open(*pixels.shape[:2])
            frame = av.VideoFrame.from_ndarray(_fitted(pixels, *self._size), format="rgb24")
            self._last = max(self._last + 1, round(seconds / self._stream.time_base))
            frame.pts, frame.time_base = self._last, self._stream.time_base
            self._container.mux(self._stream.encode(frame))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._container is None:
            return
        errors = _av().error.FFmpegError
        try:
            if kind is None:
                self._container.mux(self._stream.encode())
            self._container.close()
        except (errors, OSError) as failure:
            if kind is None:
                raise self._unwritable(failure) from failure

    def _open(self, height: int, width: int) -> None:
        av = _av()
        self._container = av.open(str(self._path), "w", format="mp4")
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        options = {"preset": "veryfast", "crf": "20"} if codec == "libx264" else {"qscale": "3"}
        self._stream = self._container.add_stream(codec, rate=self._rate, options=options)
        self._stream.codec_context.thread_count = (
            1  # bytes then do not depend on the machine's cores
        )
        self._size = (height + height % 2, width + width % 2)
        self._stream.height, self._stream.width = self._size
        self._stream.pix_fmt = "yuv420p"
        fine = codec == "libx264" and self._time_base.numerator == 1
        base = self._time_base if fine else PLAIN_TIME_BASE
        self._stream.time_base = self._stream.codec_context.time_base = base

    def _unwritable(self, error: Exception) -> OVDError:
        why = getattr(error, "strerror", None) or reason(error)
        return OVDError(f"Cannot write {self._path}: {why.rstrip('.')}.")


def _fitted(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, 3): ``pixels``, one more row or column, or made to fit with black bars."""
    more = (height - pixels.shape[0], width - pixels.shape[1])
    if more == (0, 0):
        return np.ascontiguousarray(pixels)
    if set(more) <= {0, 1}:
        return np.pad(pixels, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge")
    scale = min(height / pixels.shape[0], width / pixels.shape[1])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    canvas = Image.new("RGB", (width, height))
    place = ((width - size[0]) // 2, (height - size[1]) // 2)
    canvas.paste(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR), place)
    return np.array(canvas)
