"""The newest frames of a live source: a camera does not wait for a detector."""

import threading
from collections import deque
from collections.abc import Callable, Iterator

from .video_files import VideoImage, VideoSource

WAITING = 2  # frames; of more the oldest go
POLL_SECONDS = 0.1


class _Reader(threading.Thread):
    """Reads a video as fast as it comes and keeps its newest frames."""

    def __init__(self, video: VideoSource) -> None:
        super().__init__(name=f"frames of {video.name}", daemon=True)
        self._video = video
        self.newest: deque[VideoImage] = deque(maxlen=WAITING)
        self.arrived, self.ended = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for image in self._video:
                self.newest.append(image)
                self.arrived.set()
                if self.ended.is_set():
                    return
        except Exception as error:  # raised where the frames are used
            self.error = error


def newest_frames(
    video: VideoSource, stop: Callable[[], bool] = lambda: False
) -> Iterator[VideoImage]:
    """The frames of ``video``, without those that came while nobody had time: these are missing
    from the numbers. A thread reads, so what is given is never older than a few frames.

    Args:
        video: a live source; it must stay open until this generator is closed.
        stop: asked ten times a second at least; True ends the frames.

    Raises:
        OVDError: what reading raises.
    """
    reader = _Reader(video)
    reader.start()
    try:
        while not stop():
            is_over = not reader.is_alive()  # asked first: what it left is still taken
            if reader.newest:
                yield reader.newest.popleft()
            elif is_over:
                if reader.error is not None:
                    raise reader.error
                return
            else:
                reader.arrived.wait(POLL_SECONDS)
                reader.arrived.clear()
    finally:
        reader.ended.set()
        reader.join()  # nobody may read a source that is closed
