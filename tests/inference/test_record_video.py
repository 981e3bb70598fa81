"""Videos into files: lines and pictures, kills and continuations, damaged videos."""

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import warm_processes
from bright_rectangles import paint, rectangles
from clips import SIZE, StubPredictor, moving, write_clip, write_sound
from random_models import assert_same
from test_video_files import bad_sources, two_sizes

from ovd_d2.errors import OVDError
from ovd_d2.inference.record_video import instances_of, record_of, record_video
from ovd_d2.inference.video import FrameChoice, VideoFrame, track_video
from ovd_d2.inference.video_files import VideoSource
from ovd_d2.inference.video_journal import VideoJournal

pytest.importorskip("av")
pytest.importorskip("trackers")
ALL = FrameChoice()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", moving(30), rate=10)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_line_and_a_picture_per_frame(clip, tmp_path):
    seen = []
    report = record_video(
        StubPredictor(), clip, tmp_path / "out", ALL, on_open=seen.append,
        on_frame=lambda: seen.append("frame"),
    )  # fmt: skip
    assert names(tmp_path / "out") == ["clip.jsonl", "clip.mp4"]
    assert seen == [30] + ["frame"] * 30
    rows = lines(tmp_path / "out/clip.jsonl")
    for row, frame in zip(rows, track_video(StubPredictor(), clip), strict=True):
        assert (row["frame"], row["seconds"]) == (frame.number, frame.seconds)
        assert (row["height"], row["width"]) == SIZE
        found = frame.instances
        assert [d["box"] for d in row["detections"]] == found.pred_boxes.tensor.tolist()
        assert [d["name"] for d in row["detections"]] == ["box", "lamp"]
        assert [d["track"] or -1 for d in row["detections"]] == found.track_ids.tolist()
    assert (report.frames, report.resumed, report.damaged) == (30, 0, 0)
    assert report.counts == {"box": 30, "lamp": 30} and report.tracks == {"box": 1, "lamp": 1}
    with VideoSource(str(report.picture)) as video:
        drawn = list(video)
        assert video.rate == 10
    assert [image.seconds for image in drawn] == pytest.approx([r["seconds"] for r in rows])
    for image, original in zip(drawn, moving(30)):
        assert image.pixels.shape == original.shape
        assert np.abs(image.pixels.astype(int) - original).max() > 100  # frames and labels


def test_lines_of_masks_and_back(tmp_path):
    image = paint(next(moving(1)), (40, 30, 60, 50), score=0.654321)
    found = rectangles(image, masks=True, least=6)
    found.track_ids = torch.tensor([7, -1, 2])
    record = json.loads(json.dumps(record_of(VideoFrame(3, 0.12, image, found), ["a", "b c"])))
    assert (record["frame"], record["seconds"]) == (3, 0.12)
    assert [d["track"] for d in record["detections"]] == [7, None, 2]
    assert_same(instances_of(record, ["a", "b c"]), found, tolerance=1e-4)
    empty = record_of(VideoFrame(0, 0.0, image, found[:0]), ["a", "b c"])
    assert empty["detections"] == [] and len(instances_of(empty, ["a", "b c"])) == 0


def test_masks_are_drawn_and_no_picture_is_none(clip, tmp_path):
    choice = FrameChoice(max_frames=2)
    record_video(StubPredictor(masks=True), clip, tmp_path / "a", choice)
    assert all("segmentation" in d for row in lines(tmp_path / "a/clip.jsonl")
               for d in row["detections"])  # fmt: skip
    report = record_video(StubPredictor(), clip, tmp_path / "b", choice, picture=False)
    assert names(tmp_path / "b") == ["clip.jsonl"] and report.picture is None


def test_every_third_frame_plays_at_the_same_speed(clip, tmp_path):
    report = record_video(StubPredictor(), clip, tmp_path, FrameChoice(every=3, track=False))
    rows = lines(report.lines)
    assert [row["frame"] for row in rows] == list(range(0, 30, 3))
    assert all("track" not in d for row in rows for d in row["detections"])
    with VideoSource(str(report.picture)) as video:
        assert [i.seconds for i in video] == pytest.approx([0.3 * k for k in range(10)])


def test_sizes_that_change(tmp_path):
    report = record_video(StubPredictor(), two_sizes(tmp_path), tmp_path / "out", ALL)
    rows = lines(report.lines)
    assert report.sizes == [(96, 64), (80, 120)]
    assert [(row["width"], row["height"]) for row in rows] == [(96, 64)] * 5 + [(80, 120)] * 5
    with VideoSource(str(report.picture)) as video:
        assert {image.pixels.shape for image in video} == {(64, 96, 3)}


SCRIPT = """
import sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
from clips import StubPredictor
from ovd_d2.inference.record_video import record_video
from ovd_d2.inference.video import FrameChoice
predictor = StubPredictor(4, before=lambda: time.sleep({wait}))
record_video(predictor, {clip!r}, Path({out!r}), FrameChoice(), resume={resume!r})
print(sum(predictor.batches))
"""


def start(clip, out, resume, wait=0.15):
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
    code = SCRIPT.format(paths=paths, clip=str(clip), out=str(out), resume=resume, wait=wait)
    return warm_processes.start([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.slow
def test_killed_twice_and_continued_is_what_it_would_have_been(clip, tmp_path):
    whole = start(clip, tmp_path / "whole", False, wait=0)
    assert whole.wait(timeout=120) == 0
    out = tmp_path / "out"
    journal = out / "clip.jsonl.parts/frames.jsonl"
    done = 0
    for wanted in (5, 17):
        process = start(clip, out, True)
        while not journal.exists() or journal.read_bytes().count(b"\n") < max(wanted, done):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert names(out) == ["clip.jsonl.parts"]
        done = journal.read_bytes().count(b"\n")
    with open(journal, "ab") as file:
        file.write(b'{"frame": 1')  # torn by the kill
    last = start(clip, out, True)
    predicted_again = int(last.communicate(timeout=60)[0])
    assert last.returncode == 0 and predicted_again == 30 - done // 4 * 4
    assert digests(out) == digests(tmp_path / "whole")


def test_an_interrupted_run_is_continued_only_when_asked(clip, tmp_path):
    calls = []

    def stop():
        calls.append(None)
        return len(calls) > 9

    with pytest.raises(KeyboardInterrupt):
        record_video(StubPredictor(), clip, tmp_path, ALL, stop=stop)
    assert names(tmp_path) == ["clip.jsonl.parts"]
    for options, said in (
        ({}, "interrupted run left: add --resume"),
        ({"resume": True, "facts": {"model": "other"}}, "was made with model"),
    ):
        with pytest.raises(OVDError, match=said):
            record_video(StubPredictor(), clip, tmp_path, ALL, **options)
    with pytest.raises(OVDError, match="was made with every 1, but this run has 2.*--no-resume"):
        record_video(StubPredictor(), clip, tmp_path, FrameChoice(every=2), resume=True)
    assert names(tmp_path) == ["clip.jsonl.parts"]
    report = record_video(StubPredictor(), clip, tmp_path, ALL, resume=True)
    assert (report.frames, report.resumed) == (30, 8)
    again = record_video(StubPredictor(), clip, tmp_path, ALL)
    assert again.resumed == 0 and names(tmp_path) == ["clip.jsonl", "clip.mp4"]


def test_a_new_beginning_forgets_the_interrupted_run(clip, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        record_video(StubPredictor(), clip, tmp_path, ALL, stop=lambda: True)
    report = record_video(StubPredictor(), clip, tmp_path, FrameChoice(every=2), resume=False)
    assert (report.frames, report.resumed) == (15, 0)
    assert names(tmp_path) == ["clip.jsonl", "clip.mp4"]


def test_a_journal_that_does_not_fit(clip, tmp_path):
    calls = iter([False] * 12 + [True] * 99)
    with pytest.raises(KeyboardInterrupt):
        record_video(StubPredictor(), clip, tmp_path, ALL, stop=lambda: next(calls))
    path = tmp_path / "clip.jsonl.parts/frames.jsonl"
    content = path.read_text()
    path.write_text(content.replace('"track": 1', '"track": 9'))
    with pytest.raises(OVDError, match="does not fit .* any more: begin anew with --no-resume"):
        record_video(StubPredictor(), clip, tmp_path, ALL, resume=True)
    path.write_text("{broken}\n" * 12)
    with pytest.raises(OVDError, match="line 1 is damaged"):
        record_video(StubPredictor(), clip, tmp_path, ALL, resume=True)


def test_two_at_once(clip, tmp_path):
    calls = iter([False] * 9 + [True])
    with pytest.raises(KeyboardInterrupt):
        record_video(StubPredictor(), clip, tmp_path, ALL, stop=lambda: next(calls))
    facts = json.loads((tmp_path / "clip.jsonl.parts/facts.json").read_text())
    with (
        VideoJournal(tmp_path / "clip.jsonl", facts, resume=True, batch_size=4),
        pytest.raises(OVDError, match="Another process is writing"),
    ):
        record_video(StubPredictor(), clip, tmp_path, ALL, resume=True)


def resident():
    """Bytes of memory this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_what_is_held_does_not_grow_with_the_video(tmp_path):
    image = next(moving(1))
    frames = [np.roll(image, k, axis=1) for k in range(40)] * 10
    path, held = write_clip(tmp_path / "long.mp4", frames), []
    report = record_video(
        StubPredictor(), path, tmp_path / "out", ALL, on_frame=lambda: held.append(resident())
    )
    assert report.frames == len(held) == 400
    assert held[-1] - held[150] < 3e6, f"{(held[-1] - held[150]) / 1e6:.1f} MB in 250 frames"


def test_bad_sources_leave_nothing(tmp_path):
    sources = bad_sources(tmp_path)
    for source, said in sources.values():
        with pytest.raises(OVDError, match=said):
            record_video(StubPredictor(), source, tmp_path / "out", ALL)
    good = tmp_path / "good.mp4"
    with pytest.raises(OVDError, match="no frame from 9 s on"):
        record_video(StubPredictor(), good, tmp_path / "out/deep", FrameChoice(start=9))
    with pytest.raises(OVDError, match="it is an input"):
        record_video(StubPredictor(), good, tmp_path, ALL)
    (tmp_path / "file").write_text("")
    with pytest.raises(OVDError, match="is no folder"):
        record_video(StubPredictor(), good, tmp_path / "file", ALL)
    assert not (tmp_path / "out").exists()


def damaged(content, kind, rng):
    """A malformed version of a video file's bytes."""
    if kind == "cut":
        return content[: rng.randrange(len(content))]
    if kind == "flipped":
        flipped = bytearray(content)
        for _ in range(rng.choice((1, 10, 300))):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == "hole":
        at = rng.randrange(len(content))
        return content[:at] + bytes(rng.randrange(2000)) + content[at + rng.randrange(2000) :]
    if kind == "twice":
        return content + content[rng.randrange(len(content)) :]
    return rng.randbytes(rng.randrange(3000))


@pytest.mark.slow
def test_300_malformed_videos(tmp_path):
    """No exception but one sentence, no half-written output, little time and memory each."""
    rng = random.Random(0)
    originals = [
        write_clip(tmp_path / f"o{k}{ending}", moving(6, size), rate=10, codec=codec).read_bytes()
        for k, (ending, codec, size) in enumerate([
            (".mp4", "libx264", SIZE), (".avi", "mjpeg", (40, 50)), (".mkv", "mpeg4", SIZE),
            (".ts", "libx264", (62, 30)), (".webm", "libvpx-vp9", SIZE),
        ])
    ]  # fmt: skip
    originals.append(two_sizes(tmp_path).read_bytes())
    originals.append(write_sound(tmp_path / "sound.mp4").read_bytes())
    kinds = ("cut", "flipped", "hole", "twice", "noise")
    good, said = 0, []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for k in range(300):
        content = damaged(originals[k % len(originals)], kinds[k // 7 % len(kinds)], rng)
        path, out = tmp_path / f"video{k}.mp4", tmp_path / f"out{k}"
        path.write_bytes(content)
        began = time.monotonic()
        try:
            report = record_video(StubPredictor(), path, out, ALL)
        except OVDError as error:
            said.append(str(error).replace(str(path), "PATH"))
            assert not out.exists()
        else:
            good += 1
            assert names(out) == [f"video{k}.jsonl", f"video{k}.mp4"]
            rows = lines(report.lines)
            assert len(rows) == report.frames > 0
            assert all(np.diff([row["seconds"] for row in rows]) > 0)
            with VideoSource(str(report.picture)) as video:
                assert sum(1 for _ in video) == report.frames
        assert time.monotonic() - began < 5
    assert good >= 90 and len(said) >= 60
    assert all("\n" not in sentence and "PATH" in sentence for sentence in said)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert more < 300_000, f"{more / 1000:.0f} MB"


def test_the_folder_of_the_outputs_is_full(clip, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ovd_d2.inference.video_journal.shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        record_video(StubPredictor(), clip, tmp_path, ALL, picture=False)
    monkeypatch.undo()
    assert names(tmp_path) == ["clip.jsonl.parts"]
    report = record_video(StubPredictor(), clip, tmp_path, ALL, picture=False, resume=True)
    assert report.resumed == 28 and os.listdir(tmp_path) == ["clip.jsonl"]
