"""A folder in one call against one picture at a time; and how long a fresh process needs until it
has found something.

Letters: N pictures.
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.structures import Instances
from PIL import Image, ImageDraw

from ovd_d2.errors import OVDError
from ovd_d2.inference.model_folders import DEFAULT_MODEL
from ovd_d2.inference.predict_files import find_images
from ovd_d2.inference.predictor import OpenVocabPredictor

LEAST = 0.05  # score threshold: low, so that drawn shapes have detections to compare
SIZES = ((640, 480), (640, 427), (480, 640), (640, 480))  # width, height; COCO's commonest
WARM_UP = 4
SAME = 1e-3  # pixels and probabilities: kernels may add in another order in a batch
FIRST_DETECTION = (
    "import sys; from ovd_d2.inference import OpenVocabPredictor; "
    "predictor = OpenVocabPredictor.from_pretrained(sys.argv[1], device=sys.argv[3]); "
    "print(len(predictor.predict(sys.argv[2])), flush=True)"
)


@dataclass
class FolderBenchmark:
    """One call for N pictures, and N calls, in turn.

    Attributes:
        images: N.
        batch_size: pictures of one size that one call sends through the model together.
        detections: in all pictures.
        seconds: of each run, by side ("together", "one by one").
        differing: pictures whose detections differ (another number or class, or by more than
            SAME).
        difference: largest one of coordinates and scores elsewhere.
    """

    images: int
    batch_size: int
    detections: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    differing: int = 0
    difference: float = 0.0

    def per_second(self, side: str) -> float:
        """Pictures, by the median run."""
        return self.images / statistics.median(self.seconds[side])

    @property
    def ratio(self) -> float:
        """Time of one by one by that of together: the median over pairs of runs."""
        pairs = zip(self.seconds["one by one"], self.seconds["together"])
        return statistics.median(alone / together for alone, together in pairs)


@dataclass
class FreshProcess:
    """What a new process takes until it has printed its first line.

    Attributes:
        what: in words.
        seconds: of each run, from its start.
        cpu_seconds: its own work in these runs, until its end.
    """

    what: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


def measure_folder(
    folder: Path | None = None,
    *,
    images: int = 100,
    model: str = DEFAULT_MODEL,
    device: str = "cpu",
    batch_size: int = 4,
    repeats: int = 3,
    progress: Callable[[str], None] = lambda text: None,
) -> FolderBenchmark:
    """``predictor.predict(folder)`` against ``predict(file)`` for each of its files.

    Args:
        folder: of pictures; None: drawn ones.
        images: N, the first of ``folder``.
        model: as :meth:`OpenVocabPredictor.from_pretrained` takes it.
        device: as torch names it.
        batch_size: of the predictor.
        repeats: runs of each side, after some pictures that do not count.
        progress: told what is being measured.

    Raises:
        OVDError: no such model, no pictures, or a number below 1.
    """
    if min(images, repeats) < 1:
        raise OVDError("Numbers of images and repeats have to be 1 or more.")
    predictor = OpenVocabPredictor.from_pretrained(
        model, device=device, batch_size=batch_size, score_threshold=LEAST
    )
    with tempfile.TemporaryDirectory() as work:
        files = gather(Path(work), folder, images)
        for file in files[:WARM_UP]:
            predictor.predict(file)
        result = FolderBenchmark(len(files), batch_size)
        result.seconds = {"together": [], "one by one": []}
        for run in range(repeats):
            progress(f"{len(files)} pictures, run {run + 1} of {repeats}")
            start = time.perf_counter()
            together = predictor.predict(Path(work))
            between = time.perf_counter()
            alone = [predictor.predict(file) for file in files]
            end = time.perf_counter()
            result.seconds["together"].append(between - start)
            result.seconds["one by one"].append(end - between)
    result.detections = sum(map(len, together))
    for one, other in zip(together, alone, strict=True):
        difference = _difference(one, other)
        if difference > SAME:
            result.differing += 1
        else:
            result.difference = max(result.difference, difference)
    return result


def gather(work: Path, folder: Path | None, images: int) -> list[Path]:
    """The first ``images`` pictures of ``folder``, or as many drawn ones, as files in ``work``, in
    the order in which a predictor reads them."""
    if folder is None:
        for number in range(images):
            draw(number).save(work / f"{number:04d}.jpg", quality=90)
    else:
        for number, file in enumerate(find_images([folder])[:images]):
            shutil.copyfile(file, work / f"{number:04d}{file.suffix}")
    return find_images([work])


def draw(number: int) -> Image.Image:
    """A picture of shapes in many colours, always the same for a ``number``."""
    generator = np.random.default_rng(number)
    width, height = SIZES[number % len(SIZES)]
    picture = Image.new("RGB", (width, height), tuple(generator.integers(256, size=3).tolist()))
    pen = ImageDraw.Draw(picture)
    for _ in range(12):
        x, y = generator.integers(0, (width, height)).tolist()
        w, h = generator.integers(20, 200, size=2).tolist()
        shape = (pen.ellipse, pen.rectangle)[int(generator.integers(2))]
        shape((x, y, x + w, y + h), fill=tuple(generator.integers(256, size=3).tolist()))
    return picture


def _difference(one: Instances, other: Instances) -> float:
    """Largest one between boxes and scores; inf for other detections."""
    if not np.array_equal(one.pred_classes.numpy(), other.pred_classes.numpy()):
        return float("inf")
    pairs = (
        (one.pred_boxes.tensor, other.pred_boxes.tensor),
        (one.scores, other.scores),
    )
    return max(float((a - b).abs().max()) if len(a) else 0.0 for a, b in pairs)


def measure_start(
    *,
    model: str = DEFAULT_MODEL,
    device: str = "cpu",
    runs: int = 5,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[FreshProcess]:
    """Fresh processes, each alone: from nothing to the first detection in Python and by ``ovd
    predict``, and of that what importing torch, torchvision and ovd_d2 takes.

    Args:
        model: as :meth:`OpenVocabPredictor.from_pretrained` takes it.
        device: as torch names it.
        runs: of each, after one that does not count (it fills the system's cache of files).
        progress: told what is being measured.

    Raises:
        OVDError: a process fails; the last line of what it says.
    """
    python = [sys.executable, "-c"]
    ovd = [str(Path(sys.executable).with_name("ovd"))]
    with tempfile.TemporaryDirectory() as work:
        picture = str(Path(work, "picture.jpg"))
        draw(0).save(picture)
        predict = ["predict", picture, "--model", model, "--device", device, "--out", f"{work}/out"]
        commands = {
            "first detection, Python": [*python, FIRST_DETECTION, model, picture, device],
            "first detection, ovd predict": [*ovd, *predict],
            "import ovd_d2": [*python, "import ovd_d2; print(1)"],
            "import torch, torchvision": [*python, "import torch, torchvision; print(1)"],
            "ovd --help": [*ovd, "--help"],
        }
        for what, command in commands.items():
            progress(what)
            result = FreshProcess(what)
            for run in range(runs + 1):
                seconds, cpu_seconds = _run(what, command)
                if run:
                    result.seconds.append(seconds)
                    result.cpu_seconds.append(cpu_seconds)
            yield result


def _run(what: str, command: Sequence[str]) -> tuple[float, float]:
    """Seconds until the first line of output, and of work until the end."""
    with tempfile.TemporaryFile("w+") as errors:
        before = _children()
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(os.environ)
        )
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
        process.communicate()
        if process.returncode or not line:
            errors.seek(0)
            said = errors.read().strip().splitlines()
            raise OVDError(f"{what} failed: {said[-1] if said else process.returncode}")
    return seconds, _children() - before


def _children() -> float:
    """CPU seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
