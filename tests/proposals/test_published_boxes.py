"""MAVL's pickles and results files, whole, damaged and malicious."""

import json
import os
import pickle

import numpy as np
import pytest
import torch

from ovd_d2.errors import OVDError
from ovd_d2.proposals.published_boxes import PickledBoxes
from ovd_d2.proposals.results_file import ResultsFile

IMAGE = torch.zeros(3, 48, 64, dtype=torch.uint8)
IDS = (10, 20, 30)


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return path


def record(name="a.jpg", image_id=1):
    return {"image_id": image_id, "file_name": f"/data/{name}"}


def as_lists(found):
    return [(boxes.tolist(), [round(s, 4) for s in scores.tolist()]) for boxes, scores in found]


def test_class_specific_pickles(tmp_path):
    """As RKD's script dumps them: {category id: (list of arrays, list of numpy numbers)}."""
    content = {
        10: ([np.array([1, 2, 3, 4])], [np.float32(0.5)]),
        np.int64(30): ([], []),
    }
    dump(tmp_path / "props/n01/a.pkl", content)
    source = PickledBoxes(str(tmp_path / "props"), IDS)
    assert source.name.startswith("mavl:props@")
    found = source(record(), IMAGE, (0, 1, 2))
    assert as_lists(found) == [([[1, 2, 3, 4]], [0.5]), ([], []), ([], [])]
    assert found[1][0].shape == (0, 4)
    assert as_lists(source(record("unknown.jpg"), IMAGE, (0,))) == [([], [])]


def test_class_agnostic_pickles(tmp_path):
    pair = ([[1, 2, 3, 4.5], [0, 0, 9, 9]], [0.5, 0.25])
    one = dump(tmp_path / "combined.pkl", {"a": pair, "b.jpg": ([], [])})
    expected = [([[1, 2, 3, 4.5], [0, 0, 9, 9]], [0.5, 0.25])]
    assert as_lists(PickledBoxes(str(one))(record(), IMAGE, (0,))) == expected
    assert as_lists(PickledBoxes(str(one))(record("b.jpg"), IMAGE, (0,))) == [([], [])]
    dump(tmp_path / "folder/a.pkl", pair)
    source = PickledBoxes(str(tmp_path / "folder"))
    assert as_lists(source(record(), IMAGE, (0,))) == expected
    with pytest.raises(OVDError, match="has boxes without a label"):
        PickledBoxes(str(tmp_path / "folder"), IDS)(record(), IMAGE, (0,))


def test_objects_out_of_class_specific_pickles(tmp_path):
    dump(tmp_path / "p/a.pkl", {10: ([[1, 2, 3, 4]], [0.5]), 20: ([[5, 6, 7, 8]], [0.6])})
    assert len(PickledBoxes(str(tmp_path / "p"))(record(), IMAGE, (0,))) == 2


class Malicious:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    bad = dump(tmp_path / "p/a.pkl", {10: Malicious(f"touch {tmp_path / 'owned'}")})
    with pytest.raises(OVDError, match=r"a\.pkl is refused.*system"):
        PickledBoxes(str(tmp_path / "p"), IDS)(record(), IMAGE, (0,))
    with pytest.raises(OVDError, match=r"a\.pkl is refused"):
        PickledBoxes(str(bad), IDS)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({10: ([[1, 2, 3]], [0.5])}, "1 scores for boxes of shape"),
        ({10: ([[1, 2, 3, 4]], [0.5, 0.6])}, "2 scores for boxes of shape"),
        ({10: "boxes"}, "something else than boxes and scores"),
        ({10: ([["a", 2, 3, 4]], [0.5])}, "something else than boxes and scores"),
        ({10: None}, "something else than boxes and scores"),
    ],
)
def test_damaged_pickles_are_named(tmp_path, content, message):
    dump(tmp_path / "p/a.pkl", content)
    with pytest.raises(OVDError, match=message) as caught:
        PickledBoxes(str(tmp_path / "p"), IDS)(record(), IMAGE, (0,))
    assert "a.pkl" in str(caught.value)


def test_missing_empty_and_double_folders_are_refused(tmp_path):
    with pytest.raises(OVDError, match="no such file or folder"):
        PickledBoxes(str(tmp_path / "nothing"), IDS)
    with pytest.raises(OVDError, match=r"holds no \.pkl"):
        PickledBoxes(str(tmp_path), IDS)
    dump(tmp_path / "x/a.pkl", {})
    dump(tmp_path / "y/a.pkl", {})
    with pytest.raises(OVDError, match="are of the same image"):
        PickledBoxes(str(tmp_path), IDS)
    with pytest.raises(OVDError, match="not a dict of images"):
        PickledBoxes(str(dump(tmp_path / "list.pkl", [1])), IDS)


def result(image_id, category_id, box, score):
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


def test_results_file(tmp_path):
    entries = [result(1, 10, [1, 2, 3, 4], 0.5), result(1, 20, [0, 0, 1, 1], 0.6)]
    path = tmp_path / "r.json"
    for content in (entries, {"annotations": entries}):
        path.write_text(json.dumps(content))
        found = ResultsFile(str(path), "json", category_ids=IDS)(record(), IMAGE, (0, 2))
        assert as_lists(found) == [([[1, 2, 4, 6]], [0.5]), ([], [])]
        assert found[1][0].shape == (0, 4)
    (boxes, _) = ResultsFile(str(path), "json")(record(), IMAGE)[0]
    assert len(boxes) == 2


@pytest.mark.parametrize(
    "content", ["[", "{}", "[3]", '[{"image_id": 1}]', '{"annotations": 3}',
                '[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3], "score": 1}]',
                '[{"image_id": [], "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]'],
)  # fmt: skip
def test_damaged_results_are_named(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(OVDError, match=r"r\.json"):
        ResultsFile(
            str(tmp_path / "r.json"), "--detector json:r.json", category_ids=IDS, needs_scores=True
        )
