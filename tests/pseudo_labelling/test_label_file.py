"""What is written, where its images are, and what is on disk while it is made."""

import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ovd_d2.errors import OVDError
from ovd_d2.pseudo_labelling import (
    LABELS_KIND,
    LabelledImage,
    journal,
    labelled_image,
    read_label_file,
    write_label_file,
)
from ovd_d2.pseudo_labelling.label_file import common_folder, written_root

IMAGE = torch.zeros(3, 48, 64, dtype=torch.uint8)
FACTS = {"kind": LABELS_KIND, "version": "0", "detector": "d@1", "labels": "", "min_score": None}
ONE = LabelledImage(7, 48, 64, ((1, (1.5, 2.0, 3.25, 4.0), 0.5),), 1)
CATEGORIES = [{"id": 3, "name": "a"}, {"id": 9, "name": "b"}]


def test_the_format(tmp_path):
    empty = LabelledImage(8, 48, 64, (), 2)
    names = {7: str(tmp_path / "images/x/1.jpg"), 8: str(tmp_path / "elsewhere/2.jpg")}
    path = tmp_path / "labels.json"
    write_label_file(path, FACTS, names, [ONE, empty], CATEGORIES)
    assert json.loads(path.read_text()) == {
        "info": {**FACTS, "image_root": "images/x", "labels_without_box": 3,
                 "images_without_box": 1},
        "images": [{"id": 7, "file_name": "1.jpg", "height": 48, "width": 64}],
        "categories": CATEGORIES,
        "annotations": [{"id": 1, "image_id": 7, "category_id": 9, "bbox": [1.5, 2.0, 3.25, 4.0],
                         "score": 0.5, "area": 13.0, "iscrowd": 0}],
    }  # fmt: skip
    assert read_label_file(path)["info"]["image_root"] == str(tmp_path / "images/x")


def test_a_file_without_any_box_is_a_file(tmp_path):
    path = tmp_path / "labels.json"
    write_label_file(path, FACTS, {8: "/d/2.jpg"}, [LabelledImage(8, 1, 1, ())], CATEGORIES)
    assert read_label_file(path)["images"] == []


def test_boxes_are_written_with_width_and_height_inside_the_image():
    boxes = torch.tensor([[0.333333, 1 / 7, 64.0, 48.0]])
    one = labelled_image("x", IMAGE, (5, 6), [(boxes, torch.tensor([0.1234567])),
                                              (torch.zeros(0, 4), torch.zeros(0))])  # fmt: skip
    ((index, (x, y, w, h), score),) = one.boxes
    assert (one.height, one.width, one.without_box, index) == (48, 64, 1, 5)
    assert (x, y, w, h) == (0.33, 0.14, 63.67, 47.86) and score == 0.123457


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"info": {"kind": "other", "image_root": ""}}',
                '{"info": {"kind": "ovd_d2 proposals", "image_root": "."}, "images": 3}'],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(OVDError, match=r"x\.json is no label file"):
        read_label_file(tmp_path / "x.json")
    with pytest.raises(OVDError, match="is no label file"):
        read_label_file(tmp_path / "missing.json")


def test_image_root_moves_with_the_file_where_it_can(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data/sets")
    assert written_root("/a/images", "/a/l.json") == "images"
    assert written_root("/a/images", "/a/labels/l.json") == "../images"
    assert written_root("/a/images/x", "/a/images/x/l.json") == "."
    assert written_root("/b/images", "/a/l.json") == "/b/images"
    assert written_root("/data/sets/m/images", "/data/sets/l/a/b/l.json") == "../../../m/images"
    assert common_folder(["/a/b/1.jpg", "/a/c/2.jpg"]) == "/a"
    assert common_folder(["/a/b/1.jpg"]) == "/a/b"


finite = st.floats(-1e6, 1e6)
entries = st.builds(
    LabelledImage, st.integers() | st.text(), st.integers(1, 9999), st.integers(1, 9999),
    st.lists(st.tuples(st.integers(0, 99), st.tuples(finite, finite, finite, finite), finite),
             max_size=3).map(tuple), st.integers(0, 9),
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=3).map(tuple),
)  # fmt: skip


@given(st.lists(entries, max_size=5), st.integers(0, 60))
def test_what_a_torn_journal_keeps(tmp_path_factory, images, torn):
    """Any number of last bytes lost: the whole lines before are there, and going on works."""
    folder = tmp_path_factory.mktemp("journal") / "x.json.parts"
    journal.prepare(folder, FACTS)
    with journal.Journal(folder) as part:
        for one in images:
            part.append(one)
    assert list(journal.finished(folder)) == images
    file = folder / "rank0.jsonl"
    size = max(0, file.stat().st_size - torn)
    os.truncate(file, size)
    whole = list(journal.finished(folder))
    assert whole == images[: len(whole)]
    with journal.Journal(folder) as part:
        part.append(ONE)
    assert list(journal.finished(folder)) == [*whole, ONE]


def test_parts_of_other_settings_are_refused_by_name(tmp_path):
    folder = journal.parts_folder(tmp_path / "l.json")
    journal.prepare(folder, FACTS)
    journal.prepare(folder, {**FACTS, "version": "another"})
    with pytest.raises(OVDError, match='made with detector "d@1", but this run has "d@2"'):
        journal.prepare(folder, {**FACTS, "detector": "d@2"})
    (folder / journal.FACTS).write_text("{")
    with pytest.raises(OVDError, match="cannot be read"):
        journal.prepare(folder, FACTS)


def test_two_processes_do_not_share_a_part(tmp_path):
    journal.prepare(tmp_path / "p", FACTS)
    with journal.Journal(tmp_path / "p"):
        with pytest.raises(OVDError, match=r"another process is writing .*rank0\.jsonl"):
            journal.Journal(tmp_path / "p")
        with journal.Journal(tmp_path / "p", rank=1):
            pass
    with journal.Journal(tmp_path / "p"):
        pass


def test_a_damaged_line_is_named(tmp_path):
    journal.prepare(tmp_path / "p", FACTS)
    (tmp_path / "p/rank0.jsonl").write_text('[1, 2, 3, [], 0]\n[1, "x"]\n')
    with pytest.raises(OVDError, match=r"rank0\.jsonl line 2 is damaged"):
        list(journal.finished(tmp_path / "p"))
