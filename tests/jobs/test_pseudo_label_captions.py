"""Captions grounded by a teacher: what is written, gone on with, left out and refused."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import stub_caption_reader
import warm_processes
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from PIL import Image

from ovd_d2.cli.app import main
from ovd_d2.data.datasets.grounding import load_grounding_json, register_grounding_file
from ovd_d2.data.datasets.image_text_pairs import PREFIX
from ovd_d2.errors import OVDError
from ovd_d2.jobs.pseudo_label_captions import CaptionLabellingSettings, pseudo_label_captions
from ovd_d2.language.noun_phrases import phrases_between_stop_words

CAPTIONS = ["a zebra", "a cat and a red lion", "photo of the", "a dog", "a zebra near a red lion"]
STUB = META_ARCH_REGISTRY.get(stub_caption_reader.NAME)


def write_pairs(folder, captions, size=(48, 64)):
    """Images, and a jsonl of their captions with a caption of a part of the first."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = [{"file_name": "0000.png", "caption": "a red thing", "box": [1, 2, 9, 9]}]
    for number, caption in enumerate(captions):
        name = f"{number:04d}.png"
        pixels = rng.integers(0, 30 + number % 200, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        lines.append({"file_name": name, "caption": caption})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return f"{PREFIX}{folder / 'pairs.jsonl'}"


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    for name, value in {"asked": [], "dies_after": None, "pause": 0.0}.items():
        monkeypatch.setattr(STUB, name, value)
    return write_pairs(tmp_path / "web", CAPTIONS)


def settings(tmp_path, pairs, **changes):
    teacher = stub_caption_reader.write_run(tmp_path / "teacher")
    options = {"detector": f"model:{teacher}", "dataset": pairs, "device": "cpu",
               "noun_phrases": "stop-words", **changes}  # fmt: skip
    return CaptionLabellingSettings(out=tmp_path / "out/captions.json", **options)


def test_what_is_written_is_grounding_data(tmp_path, pairs):
    told = []
    report = pseudo_label_captions(settings(tmp_path, pairs), lambda *n: told.append(n))
    path = tmp_path / "out/captions.json"
    records = load_grounding_json(path)
    assert [r["caption"].caption for r in records] == [CAPTIONS[0], CAPTIONS[1], CAPTIONS[4]]
    assert STUB.asked == [CAPTIONS[0], CAPTIONS[1], CAPTIONS[3], CAPTIONS[4]]
    for record in records:
        caption = record["caption"]
        found = phrases_between_stop_words(caption.caption)
        assert caption.spans == tuple((span,) for span in found)
        assert Path(record["file_name"]).resolve().parent == (tmp_path / "web").resolve()
        assert (record["height"], record["width"]) == (48, 64)
        pixels = np.asarray(Image.open(record["file_name"]), dtype=np.float64)
        x = pixels.mean() / 10 + 1
        phrases = caption.phrases()
        wanted = [k for k, words in enumerate(phrases) if len(words) >= 5]  # score 0.5 or more
        assert [a["category_id"] for a in record["annotations"]] == wanted
        for annotation in record["annotations"]:
            k = annotation["category_id"]
            assert annotation["bbox"] == pytest.approx([x, k, 8, x + 30 - k], abs=0.02)
            assert annotation["score"] == pytest.approx(len(phrases[k]) / 10)
    content = json.loads(path.read_text())
    assert content["info"]["image_root"] == "../web"
    assert content["info"]["detector"].startswith("model:teacher/model_final.pth@")
    assert (report.done, report.images, report.boxes) == (5, 3, 4)
    counts = report.counts
    assert (counts.captions, counts.captions_without_phrase, counts.phrases) == (5, 1, 6)
    assert (counts.phrases_without_box, counts.images_left_out) == (2, 2)
    assert told[0] == (0, 5) and told[-1] == (5, 5)
    assert not (tmp_path / "out/captions.json.parts").exists()


@pytest.mark.parametrize(
    ("changes", "images", "boxes"),
    [
        ({"score_threshold": 0.0}, 4, 12), ({"score_threshold": 0.51}, 2, 2),
        ({"score_threshold": 1.0}, 0, 0), ({"min_boxes": 2}, 1, 2), ({"min_boxes": 0}, 5, 4),
    ],
)  # fmt: skip
def test_threshold_and_least_number_of_boxes(tmp_path, pairs, changes, images, boxes):
    report = pseudo_label_captions(settings(tmp_path, pairs, **changes))
    assert (report.images, report.boxes) == (images, boxes)
    assert report.counts.images_left_out == 5 - images
    records = load_grounding_json(tmp_path / "out/captions.json") if images else []
    assert [len(r["annotations"]) for r in records].count(0) == (2 if images == 5 else 0)


def test_captions_of_grounding_data_are_grounded_anew(tmp_path, pairs):
    """A second round: the data set that a first one wrote is asked for by its texts."""
    pseudo_label_captions(settings(tmp_path, pairs))
    first = tmp_path / "first.json"
    (tmp_path / "out/captions.json").rename(first)
    content = json.loads(first.read_text())
    content["info"]["image_root"] = "web"
    first.write_text(json.dumps(content))
    name = f"grounding:{first}"
    assert register_grounding_file(name)
    report = pseudo_label_captions(settings(tmp_path, name, score_threshold=0.0))
    assert (report.images, report.boxes) == (3, 10)
    assert len(DatasetCatalog.get(name)) == 3


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path, pairs, monkeypatch):
    whole = settings(tmp_path, pairs)
    pseudo_label_captions(whole)
    path = tmp_path / "out/captions.json"
    expected = path.read_bytes()
    asked = list(STUB.asked)
    STUB.asked.clear()
    assert pseudo_label_captions(whole).done == 0 and not STUB.asked
    with pytest.raises(OVDError, match=r"was made with score_threshold 0.5, but this run has 0.6"):
        pseudo_label_captions(settings(tmp_path, pairs, score_threshold=0.6))
    path.unlink()
    monkeypatch.setattr(STUB, "dies_after", 2)
    with pytest.raises(KeyboardInterrupt):
        pseudo_label_captions(whole)
    assert not path.exists()
    with open(f"{path}.parts/rank0.jsonl", "ab") as file:
        file.write(b"[9, 48, 64, [[")  # a torn line
    with pytest.raises(OVDError, match="made with min_boxes 1, but this run has 2"):
        pseudo_label_captions(settings(tmp_path, pairs, min_boxes=2))
    monkeypatch.setattr(STUB, "dies_after", None)
    report = pseudo_label_captions(whole)
    assert report.done == 2 and asked == STUB.asked  # three were done, one of them has no phrase
    assert path.read_bytes() == expected
    path.write_text('{"info": {"kind": "ovd_d2 grounding"}}')
    with pytest.raises(OVDError, match="is no file of `ovd pseudo-label --task grounding`"):
        pseudo_label_captions(whole)


def test_a_run_that_finishes_no_image_leaves_nothing_behind(tmp_path, pairs, monkeypatch):
    monkeypatch.setattr(STUB, "dies_after", 0)
    with pytest.raises(KeyboardInterrupt):
        pseudo_label_captions(settings(tmp_path, pairs))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detector": "json:boxes.json"}, "--detector json:boxes.json cannot be asked for phrases"),
        ({"detector": "model:"}, "--detector model: cannot be asked for phrases"),
        ({"detector": "model:nothing"}, "--detector model:nothing needs"),
        ({"detector": "hf:/nowhere/at/all"}, "neither a folder nor a Hugging Face model"),
        ({"detector": "hf:x", "config_file": "x.yaml"}, "--config-file is for --detector model"),
        ({"score_threshold": 1.5}, "--score-threshold 1.5"),
        ({"score_threshold": float("nan")}, "--score-threshold nan"),
        ({"min_boxes": -1}, "--min-boxes -1"),
        ({"dataset": ""}, "--task grounding needs --dataset"),
        ({"dataset": "nonsense"}, "'nonsense', which is not registered"),
        ({"dataset": "pairs:nothing.csv"}, "nothing.csv does not exist"),
        ({"noun_phrases": "no_such_pipeline"}, "spaCy"),
        ({"device": "abacus"}, "--device abacus"),
    ],
)
def test_bad_settings_leave_nothing_behind(tmp_path, pairs, changes, message):
    with pytest.raises(OVDError, match=message):
        pseudo_label_captions(settings(tmp_path, pairs, **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"file_name": "a.png"}], "has no captions of whole images"),
        ([{"file_name": "a.png", "caption": "a cat", "box": (0, 0, 9, 9)}], "of whole images"),
        ([{"file_name": "a.png", "caption": ["a cat"]}], "is a list: the data set must give it"),
        ([{"file_name": "a.tar/1.png", "caption": "a cat", "shard": ("a.tar", 0, 9)}], "unpack"),
    ],
)
def test_data_sets_without_captions_to_ground_are_refused(tmp_path, pairs, records, message):
    name = "captions_of_a_test"
    records = [{"image_id": number, **record} for number, record in enumerate(records)]
    DatasetCatalog.register(name, lambda: records)
    try:
        with pytest.raises(OVDError, match=message):
            pseudo_label_captions(settings(tmp_path, name))
    finally:
        DatasetCatalog.remove(name)


def test_a_teacher_that_reads_no_captions_is_refused(tmp_path, pairs):
    job = settings(tmp_path, pairs)
    config = tmp_path / "teacher/config.yaml"
    config.write_text(config.read_text().replace(stub_caption_reader.NAME, "GeneralizedRCNN"))
    with pytest.raises(OVDError, match="is a GeneralizedRCNN, which finds classes and reads no"):
        pseudo_label_captions(job)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "grounding", "--topk", "1"], "--topk is for --task labels; this is --task"),
        (["--task", "grounding", "--vocab", "cat"], "--vocab is for --task labels"),
        (["--task", "grounding", "--images", "x"], "--images is for --task labels"),
        (["--min-boxes", "1"], "--min-boxes is for --task grounding; this is --task labels"),
        (["--score-threshold", "0.5"], "--score-threshold is for --task grounding"),
        (["--task", "boxes"], "--task boxes is unknown: use labels or grounding"),
    ],
)  # fmt: skip
def test_options_of_another_task_are_one_line(tmp_path, capsys, words, message):
    out = tmp_path / "x/c.json"
    with pytest.raises(SystemExit) as caught:
        main(["pseudo-label", "--detector", "hf:x", "--out", str(out), *words])
    error = capsys.readouterr().err.strip()
    assert caught.value.code == 2 and message in error and error.startswith("error: ")
    assert "\n" not in error and not out.parent.exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_and_finished_by_two_processes(tmp_path):
    """The file is that of a run that nobody killed, byte for byte."""
    captions = [CAPTIONS[number % 5] for number in range(300)]
    pairs = write_pairs(tmp_path / "web", captions)
    teacher = stub_caption_reader.write_run(tmp_path / "teacher")
    out, reference = tmp_path / "captions.json", tmp_path / "reference.json"
    app = ["-m", "ovd_d2.cli.app", "pseudo-label", "--task", "grounding", "--dataset", pairs,
           "--detector", f"model:{teacher}", "--register", stub_caption_reader.__file__,
           "--noun-phrases", "stop-words", "--device", "cpu", "--out"]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "wb") as log:
        command = [sys.executable, *app, str(out)]
        process = warm_processes.start(command, env=env, stdout=log, stderr=log)
        deadline = time.monotonic() + 100
        while process.poll() is None and _lines(out) < 20:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert 20 <= _lines(out) < 300 and not out.exists()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = [
        warm_processes.run([sys.executable, *words], env=env, capture_output=True, text=True)
        for words in ([*torchrun, *app, str(out)], [*app, str(reference)])
    ]
    assert [ran.returncode for ran in done] == [0, 0], done
    assert out.read_bytes() == reference.read_bytes() and not Path(f"{out}.parts").exists()
    assert len(load_grounding_json(out)) == 180
    for ran in done:
        assert "240 boxes on 180 images" in ran.stdout
        assert "120 of 360 phrases got no box of score 0.5 or more" in ran.stdout
        assert "120 of 300 images without a box are left out; 60 captions have no" in ran.stdout
    assert done[0].stdout.count("by the first of the processes") == 1
    assert "300 images in" in done[1].stdout


def _lines(out):
    return sum(path.read_bytes().count(b"\n") for path in Path(f"{out}.parts").glob("rank*.jsonl"))
