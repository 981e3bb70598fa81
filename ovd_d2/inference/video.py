"""What is in a video: frame by frame, with ids that follow an object.

Letters: R detections of a frame, H, W its height and width.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from detectron2.structures import Instances

from ovd_d2.errors import OVDError

from .arguments import check_count
from .live_frames import newest_frames
from .predictor import OpenVocabPredictor
from .tracking import ObjectTracker
from .video_files import VideoImage, VideoSource


@dataclass(frozen=True)
class VideoFrame:
    """What was found in one frame.

    Attributes:
        number: counted from the first frame of the video, 0.
        seconds: after the first frame.
        image: (H, W, 3) uint8, RGB.
        instances: R detections in the frame of ``image``, on the CPU, best first: ``pred_boxes``,
            ``scores``, ``pred_classes``, perhaps ``pred_masks``, and with tracking ``track_ids``
            (R,) int64, 1, 2, 3, ..., and -1 of what was not seen in a frame before.
    """

    number: int
    seconds: float
    image: np.ndarray
    instances: Instances


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a video are predicted, and how.

    Attributes:
        every: from the first one on, each so manieth.
        start: seconds after the first frame.
        end: seconds; None: to the last one.
        max_frames: at most so many; None: all.
        tile: see ``predictor.predict``.
        overlap: of tiles.
        track: give ids.
    """

    every: int = 1
    start: float = 0.0
    end: float | None = None
    max_frames: int | None = None
    tile: int | None = None
    overlap: float | None = None
    track: bool = True

    def __post_init__(self) -> None:
        check_count("every", self.every)
        if self.max_frames is not None:
            check_count("max_frames", self.max_frames)
        for name, value in (("start", self.start), ("end", self.end)):
            if value is not None and not 0 <= value < float("inf"):
                raise OVDError(f"{name} is {value!r}; it must be 0 or more seconds.")
        if self.end is not None and self.end <= self.start:
            raise OVDError(f"end is {self.end:g}; it must be after start, {self.start:g}.")

    def choose(self, images: Iterable[VideoImage]) -> Iterator[VideoImage]:
        """Those of ``images`` that are predicted."""
        chosen = due = 0
        for image in images:
            if self.end is not None and image.seconds >= self.end:
                return
            if image.seconds < self.start or image.number < due:
                continue
            yield image
            chosen, due = chosen + 1, image.number + self.every
            if chosen == self.max_frames:
                return

    def expected(self, video: VideoSource) -> int | None:
        """About how many frames that will be; None: nobody knows."""
        counts = [] if self.max_frames is None else [self.max_frames]
        last = [] if video.length is None else [video.length / float(video.rate)]
        last += [] if self.end is None else [self.end]
        if last:
            counts.append(round(max(0.0, min(last) - self.start) * float(video.rate) / self.every))
        return min(counts) if counts else None


def track_video(
    predictor: OpenVocabPredictor,
    source: str | os.PathLike,
    *,
    every: int = 1,
    start: float = 0.0,
    end: float | None = None,
    max_frames: int | None = None,
    tile: int | None = None,
    overlap: float | None = None,
    track: bool = True,
) -> Iterator[VideoFrame]:
    """Finds the vocabulary's classes in a video, frame by frame, holding a batch at a time::

        for frame in track_video(predictor, "clip.mp4"):
            print(frame.seconds, frame.instances.track_ids.tolist())

    Of a camera or an endless stream the newest frame is taken each time; break ends it.

    Args:
        predictor: with a vocabulary.
        source: a file, a camera ("0", "/dev/video0"), or an address (rtsp://, http://, ...).
        every: predict each so manieth frame.
        start: seconds to begin at.
        end: seconds to end at; None: the end.
        max_frames: frames to predict at most; None: all.
        tile: side of the tiles that frames are cut into, see ``predictor.predict``.
        overlap: of these.
        track: give ids, see :class:`VideoFrame`.

    Raises:
        OVDError: a source that cannot be read, a model of label maps, an argument out of range.
    """
    choice = FrameChoice(every, start, end, max_frames, tile, overlap, track)

    def frames() -> Iterator[VideoFrame]:
        with VideoSource(os.fspath(source), max_pixels=predictor.cfg.INPUT.MAX_PIXELS) as video:
            tracker = tracker_for(video, choice)
            with closing(frames_of(video)) as images:
                chosen = choice.choose(images)
                yield from predicted(predictor, chosen, choice, tracker, is_live=video.is_live)

    return frames()


def frames_of(
    video: VideoSource, stop: Callable[[], bool] = lambda: False
) -> Generator[VideoImage, None, None]:
    """All frames of a file, the newest ones of a live source, until ``stop()``."""
    yield from newest_frames(video, stop) if video.is_live else video


def tracker_for(video: VideoSource, choice: FrameChoice) -> ObjectTracker | None:
    """Gives ids at the rate at which frames are predicted; None: no ids are wanted."""
    return ObjectTracker(float(video.rate) / choice.every) if choice.track else None


def predicted(
    predictor: OpenVocabPredictor,
    images: Iterable[VideoImage],
    choice: FrameChoice,
    tracker: ObjectTracker | None,
    *,
    is_live: bool = False,
) -> Iterator[VideoFrame]:
    """What is found in ``images``, in order; ``batch_size`` of them are held, of a live source one.

    Raises:
        OVDError: the model gives label maps.
    """
    options = {"input_format": "RGB", "tile": choice.tile, "overlap": choice.overlap}
    waiting: deque[VideoImage] = deque()

    def pixels(some: Iterable[VideoImage]) -> Iterator[np.ndarray]:
        for image in some:
            waiting.append(image)
            yield image.pixels

    groups = ([image] for image in images) if is_live else [images]
    for group in groups:
        for prediction in predictor.stream(pixels(group), **options):
            image, found = waiting.popleft(), prediction.instances
            if found is None:
                raise OVDError("The model gives label maps; videos need one that finds boxes.")
            if tracker is not None:
                found.track_ids = tracker.update(found, image.seconds)
            yield VideoFrame(image.number, image.seconds, image.pixels, found)
