"""``ovd video``: what is in this video, camera or stream, and where does it go?"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .predict import (
    ALONE,
    EXAMPLES,
    NEGATIVES,
    SCORE_THRESHOLD,
    SEEN_BY,
    SYNONYMS,
    THRESHOLDS,
    _silence_torch,
)
from .register_option import REGISTER
from .tile_options import OVERLAP, TILE

if TYPE_CHECKING:
    from ovd_d2.inference.record_video import VideoReport

_SOURCE = typer.Argument(
    ...,
    metavar="SOURCE",
    help="A video file, a camera (0, /dev/video0), or the address of a stream (rtsp://, http://). "
    "Ctrl-C ends a camera or stream; what was written by then is complete.",
)
_VOCABULARY = typer.Option(
    "",
    "--vocab",
    help='What to look for: "cat, red mug", a .txt or .json file, or dataset:NAME; left out: the '
    "classes the model was trained on.",
)
_OUT = typer.Option(Path("output/video"), help="Folder of NAME.mp4 and NAME.jsonl.")
_MODEL = typer.Option(
    "",
    help="A packaged model, one of `ovd models list`, a folder that `ovd export` wrote, or hf: and "
    "a zero-shot detector of transformers (name or folder); default: mini.",
)
_CONFIG = typer.Option(None, help="The yaml a model was trained with, instead of --model.")
_THRESHOLD = typer.Option(
    None,
    min=0,
    max=1,
    help=f"Drop what scores less; default: the model's own (mini: 0.08), else {SCORE_THRESHOLD}.",
)
_RESUME = typer.Option(
    None, "--resume/--no-resume", help="Continue a run that was interrupted, or begin anew."
)


def command(
    source: str = _SOURCE,
    vocabulary: str = _VOCABULARY,
    attributes: str = typer.Option("", help='"red, striped": as in `ovd predict`.'),
    model: str = _MODEL,
    config_file: Path | None = _CONFIG,
    weights: str = typer.Option("", help="Checkpoint for --config-file."),
    out: Path = _OUT,
    picture: bool = typer.Option(True, help="Write NAME.mp4, the video with what was found."),
    track: bool = typer.Option(True, help="Give ids that follow an object (ByteTrack)."),
    every: int = typer.Option(1, min=1, help="Predict each so manieth frame."),
    start: float = typer.Option(0.0, min=0, help="Seconds to begin at."),
    end: float | None = typer.Option(None, min=0, help="Seconds to end at."),
    max_frames: int | None = typer.Option(None, min=1, help="Frames to predict at most."),
    score_threshold: float | None = _THRESHOLD,
    topk: int | None = typer.Option(None, min=1, help="Detections per frame."),
    device: str | None = typer.Option(None, help="cpu, cuda, ...; default: a GPU if there is one."),
    batch_size: int = typer.Option(4, min=1, help="Frames that go through the model together."),
    tile: int | None = TILE,
    overlap: float | None = OVERLAP,
    resume: bool | None = _RESUME,
    registered: list[str] = REGISTER,
    negatives: str = NEGATIVES,
    thresholds: Path | None = THRESHOLDS,
    synonyms: str = SYNONYMS,
    examples: Path | None = EXAMPLES,
    seen_by: str = SEEN_BY,
    alone: bool = ALONE,
) -> None:
    """Find what you name in a video: a video with boxes, names and ids, and a json line per frame.

    The video has the frames that were predicted, at their times, without sound.

    Exit code 130: stopped by Ctrl-C; --resume continues. A camera or stream ends with 0 then.
    """
    from tqdm import tqdm

    from ovd_d2 import register

    register()
    from ovd_d2.inference.opening import WantedClasses, check_model_choice, open_with_classes
    from ovd_d2.inference.record_video import record_video
    from ovd_d2.inference.tiles import wanted_tiles
    from ovd_d2.inference.video import FrameChoice
    from ovd_d2.inference.video_files import VideoSource

    check_model_choice(model, config_file, weights)
    _silence_torch()
    wanted_tiles(tile, overlap)
    choice = FrameChoice(every, start, end, max_frames, tile, overlap, track)
    wanted = WantedClasses(vocabulary, examples, seen_by, negatives, thresholds, synonyms, alone)
    inputs = [
        *wanted.check(),
        *(str(file) for file in (config_file, weights) if file),
    ]  # bad ones are found before a model is loaded
    if Path(source).is_file():
        VideoSource(source, max_pixels=0).close()  # so is a file that is no video
    predictor = open_with_classes(
        wanted, model, config_file, weights, device=device, score_threshold=score_threshold,
        default_threshold=SCORE_THRESHOLD, topk=topk, batch_size=batch_size,
    )  # fmt: skip
    if attributes:
        predictor.set_attributes(attributes)
    facts = {"model": model or str(config_file or "mini"), "checkpoint": weights}
    with _until_a_signal() as stop, tqdm(unit="frame", delay=1, disable=None) as bar:

        def expect(frames: int | None) -> None:
            bar.total = frames

        try:
            report = record_video(
                predictor, source, out, choice, picture=picture, resume=resume,
                facts={**facts, **wanted.example_digests()}, inputs=inputs,
                stop=stop.is_set, on_open=expect, on_frame=bar.update,
            )  # fmt: skip
        except KeyboardInterrupt:
            bar.close()
            print("stopped: the same command with --resume continues.", file=sys.stderr)
            raise typer.Exit(130) from None
    _show(report)


@contextmanager
def _until_a_signal() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C or SIGTERM; the second one ends the process."""
    stop, before = threading.Event(), {}

    def handle(*_: object) -> None:
        stop.set()
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(report: "VideoReport") -> None:
    again = f" ({report.resumed} of them by an earlier run)" if report.resumed else ""
    print(f"{report.frames} frame{'s' * (report.frames != 1)}{again}, {report.seconds:.2f} s")
    for name, count in report.counts.most_common(20):
        tracks = report.tracks[name]
        objects = f", {tracks} track{'s' * (tracks != 1)}" if tracks else ""
        print(f"  {name}: {count} detection{'s' * (count != 1)}{objects}")
    if not report.counts:
        print("  nothing found")
    for note in _notes(report):
        print(f"note: {note}", file=sys.stderr)
    print(f"{f'{report.picture}; ' if report.picture else ''}{report.lines}")


def _notes(report: "VideoReport") -> list[str]:
    """What is unusual about the video."""
    notes = []
    if len(report.sizes) > 1:
        sizes = ", ".join(f"{wide} x {high}" for wide, high in report.sizes)
        notes.append(f"the size of the frames changes: {sizes}; boxes are in that of each line.")
    if report.damaged:
        notes.append(
            f"parts of the video that could not be decoded and are left out: {report.damaged}."
        )
    if report.expected and report.frames < 0.9 * report.expected:
        notes.append(
            f"the video should have about {report.expected} such frames, but ends earlier."
        )
    return notes
