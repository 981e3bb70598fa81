"""A video's detections as files: json lines, and a video in which they are drawn.

A line is a frame: ``{"frame": 12, "seconds": 0.48, "width": 640, "height": 480, "detections":
[{"box": [x0, y0, x1, y1], "score": 0.71, "name": "cat", "track": 3}]}``, with "segmentation" (COCO
run lengths) of models that give masks, and "track" null of what has no id yet. What is tracked and
drawn is what the line says, so a run that was killed and continued writes what it would have
written: frames that are done are read, tracked and drawn again, but not predicted again.

Letters: R detections of a frame.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask

from ovd_d2 import __version__
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_output, check_output_folder, put_in_place
from ovd_d2.visualization.detections import draw_detections

from .predictor import OpenVocabPredictor
from .tracking import COORDINATE_DECIMALS, NO_TRACK, ObjectTracker
from .video import FrameChoice, VideoFrame, frames_of, predicted, tracker_for
from .video_files import VideoImage, VideoSource, VideoWriter
from .video_journal import VideoJournal

SCORE_DECIMALS = 4


@dataclass
class VideoReport:
    """What came of a video.

    Attributes:
        lines: the json lines.
        picture: the annotated video; None: none was wanted.
        expected: about how many frames there should be; None: nobody knows.
        frames: how many were predicted, in all runs.
        resumed: how many of them in earlier runs.
        seconds: time of the last one.
        counts: name -> detections.
        tracks: name -> objects that got an id; empty without ids.
        damaged: parts of the video that could not be decoded.
        sizes: (width, height) of its frames; several, where that changes.
    """

    lines: Path
    picture: Path | None
    expected: int | None = None
    frames: int = 0
    resumed: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    tracks: Counter[str] = field(default_factory=Counter)
    damaged: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    _last_track: int = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Counts a frame; ids are given in rising order, so the highest one tells the new ones."""
        self.frames, self.seconds = self.frames + 1, record["seconds"]
        size = (record["width"], record["height"])
        if size not in self.sizes and len(self.sizes) < 10:
            self.sizes.append(size)
        highest = self._last_track
        for row in record["detections"]:
            self.counts[row["name"]] += 1
            track = row.get("track") or 0
            if track > self._last_track:
                self.tracks[row["name"]] += 1
                highest = max(highest, track)
        self._last_track = highest


def record_video(
    predictor: OpenVocabPredictor,
    source: str | os.PathLike,
    out: Path,
    choice: FrameChoice,
    *,
    picture: bool = True,
    resume: bool | None = None,
    facts: Mapping[str, Any] | None = None,
    inputs: Sequence[str | os.PathLike] = (),
    stop: Callable[[], bool] = lambda: False,
    on_open: Callable[[int | None], None] = lambda expected: None,
    on_frame: Callable[[], None] = lambda: None,
) -> VideoReport:
    """Predicts a video and writes ``out/NAME.jsonl`` and ``out/NAME.mp4``, whole or not at all.

    Args:
        predictor: with a vocabulary.
        source: see :class:`~ovd_d2.inference.video_files.VideoSource`.
        out: the folder.
        choice: which frames.
        picture: draw a video; it has the frames that were predicted, at their times, no sound.
        resume: see :class:`~ovd_d2.inference.video_journal.VideoJournal`.
        facts: what else tells this run from others, for ``resume``.
        inputs: other files that are read; no output may replace one of them.
        stop: asked between frames; True ends a live source, whose outputs are complete then.
        on_open: called once, with the number of frames to come, if that is known.
        on_frame: called after every frame.

    Raises:
        OVDError: the source cannot be read or has no frames, the model gives label maps, an output
            would replace the source or cannot be written, or ``resume`` does not fit.
        KeyboardInterrupt: ``stop()`` was True and the source is a file; it can be resumed.
    """
    with ExitStack() as stack:
        video = stack.enter_context(
            VideoSource(os.fspath(source), max_pixels=predictor.cfg.INPUT.MAX_PIXELS)
        )
        report = _report(video, out, picture, inputs)
        if video.is_live and resume:
            raise OVDError(f"{source} is live and cannot be continued: leave out --resume.")
        tracker = tracker_for(video, choice)
        journal = stack.enter_context(
            VideoJournal(
                report.lines,
                {**_facts(predictor, video, choice), **(facts or {})},
                resume=resume,
                batch_size=1 if choice.tile else predictor.batch_size,
            )
        )
        report.resumed = journal.count
        report.expected = None if video.is_live else choice.expected(video)
        on_open(report.expected)
        frames = stack.enter_context(closing(frames_of(video, stop)))
        images = choice.choose(frames)
        with ExitStack() as drawing:
            writer = None
            if picture:
                base = VideoWriter(journal.picture, video.rate / choice.every, video.time_base)
                writer = drawing.enter_context(base)
            for pixels, record in _records(predictor, video, images, choice, tracker, journal):
                report.add(record)
                if writer is not None:
                    writer.write(_drawn(pixels, record, predictor), record["seconds"])
                on_frame()
                if stop() and not video.is_live:
                    raise KeyboardInterrupt
        report.damaged = video.damaged
        _check_frames(report, video, choice)
        if picture:
            put_in_place(journal.picture, report.picture)
        journal.finish()
    return report


def _report(
    video: VideoSource, out: Path, picture: bool, inputs: Sequence[str | os.PathLike]
) -> VideoReport:
    lines, drawn = out / f"{video.name}.jsonl", out / f"{video.name}.mp4"
    check_output_folder("--out", out)
    for target in (lines, drawn) if picture else (lines,):
        check_output("--out", target, [video.source, *inputs])
    return VideoReport(lines, drawn if picture else None)


def _facts(
    predictor: OpenVocabPredictor, video: VideoSource, choice: FrameChoice
) -> dict[str, Any]:
    """What a run must have in common with one it continues."""
    path = Path(video.source)
    return {
        "version": __version__,
        "source": os.path.abspath(path) if path.is_file() else video.source,
        "bytes": path.stat().st_size if path.is_file() else None,
        "weights": predictor.facts.get("sha256"),
        "vocabulary": list(predictor.vocabulary.names) if predictor.vocabulary else [],
        "score threshold": predictor.score_threshold,
        "detections per frame": predictor.cfg.TEST.DETECTIONS_PER_IMAGE,
        **(predictor.rules.facts if predictor.rules else {}),
        **vars(choice),
    }


def _records(
    predictor: OpenVocabPredictor,
    video: VideoSource,
    images: Iterator[VideoImage],
    choice: FrameChoice,
    tracker: ObjectTracker | None,
    journal: VideoJournal,
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """(pixels, line) of every frame: those of the journal, then new ones, which go into it."""
    names = predictor.vocabulary.names if predictor.vocabulary else ()
    for record in journal.lines():
        image = next(images, None)
        instances = instances_of(record, names)
        ids = None
        if image is not None and tracker is not None:
            ids = tracker.update(instances, image.seconds).tolist()
        said = [row["track"] or NO_TRACK for row in record["detections"]] if tracker else None
        if image is None or image.number != record["frame"] or ids != said:
            raise OVDError(
                f"{journal.folder} does not fit {video.source} any more: begin anew with "
                "--no-resume."
            )
        yield image.pixels, record
    for frame in predicted(predictor, images, choice, tracker, is_live=video.is_live):
        record = record_of(frame, names)
        journal.append(record)
        yield frame.image, record


def record_of(frame: VideoFrame, names: Sequence[str]) -> dict[str, Any]:
    """The line of a frame, see the module's text."""
    found = frame.instances
    boxes = found.pred_boxes.tensor.double().numpy().round(COORDINATE_DECIMALS).tolist()
    scores = found.scores.double().numpy().round(SCORE_DECIMALS).tolist()
    rows: list[dict[str, Any]] = [
        {"box": box, "score": score, "name": names[k]}
        for box, score, k in zip(boxes, scores, found.pred_classes.tolist())
    ]
    if found.has("track_ids"):
        for row, track in zip(rows, found.track_ids.tolist()):
            row["track"] = None if track == NO_TRACK else track
    if found.has("pred_masks") and rows:
        masks = found.pred_masks.permute(1, 2, 0).to(torch.uint8).numpy()
        for row, mask in zip(rows, coco_mask.encode(np.asfortranarray(masks))):
            row["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
    height, width = frame.image.shape[:2]
    return {
        "frame": frame.number,
        "seconds": frame.seconds,
        "width": width,
        "height": height,
        "detections": rows,
    }


def instances_of(record: Mapping[str, Any], names: Sequence[str]) -> Instances:
    """The detections of a line: R ``pred_boxes``, ``scores``, ``pred_classes`` and, if it has them,
    ``track_ids`` and ``pred_masks``."""
    rows = record["detections"]
    number = {name: k for k, name in enumerate(names)}
    instances = Instances((record["height"], record["width"]))
    instances.pred_boxes = Boxes(torch.tensor([row["box"] for row in rows]).reshape(-1, 4))
    instances.scores = torch.tensor([row["score"] for row in rows])
    instances.pred_classes = torch.tensor([number[row["name"]] for row in rows]).long()
    if any("track" in row for row in rows):
        ids = [row["track"] or NO_TRACK for row in rows]
        instances.track_ids = torch.tensor(ids, dtype=torch.long)
    if any("segmentation" in row for row in rows):
        masks = coco_mask.decode([row["segmentation"] for row in rows])
        instances.pred_masks = torch.from_numpy(masks).permute(2, 0, 1).bool()
    return instances


def _drawn(
    pixels: np.ndarray, record: Mapping[str, Any], predictor: OpenVocabPredictor
) -> np.ndarray:
    names = predictor.vocabulary.names
    return draw_detections(pixels, instances_of(record, names), names, min_side=0)


def _check_frames(report: VideoReport, video: VideoSource, choice: FrameChoice) -> None:
    if report.frames:
        return
    if choice.start > 0:
        raise OVDError(f"{video.source} has no frame from {choice.start:g} s on.")
    raise OVDError(f"{video.source} holds no frame that can be read: give another video.")
