"""Few-shot protocols: classes of the folds, episodes, and the one class that counts."""

import pickle

import numpy as np
import pytest
from data.semantic_trees import coco20i, filled, fss1000, voc, write_list
from detectron2.data import MetadataCatalog

import ovd_d2  # noqa: F401 (registers)
from ovd_d2.data.datasets.semantic import read_label_map
from ovd_d2.data.datasets.semantic.few_shot import (
    fold_classes,
    load_coco20i,
    load_fss1000,
    load_pascal5i,
)
from ovd_d2.errors import OVDError


def test_classes_of_the_folds():
    assert fold_classes("pascal5i", 1, train=False) == [5, 6, 7, 8, 9]
    assert fold_classes("coco20i", 1, train=False) == list(range(1, 80, 4))
    for benchmark, count in (("pascal5i", 20), ("coco20i", 80)):
        for fold in range(4):
            test = fold_classes(benchmark, fold, train=False)
            train = fold_classes(benchmark, fold, train=True)
            assert sorted(test + train) == list(range(count))
            classes = MetadataCatalog.get(f"{benchmark}_fold{fold}_val").stuff_classes
            assert len(classes) == 1 + len(test)
    assert MetadataCatalog.get("pascal5i_fold0_val").stuff_classes == [
        "others", "aeroplane", "bicycle", "bird", "boat", "bottle"
    ]  # fmt: skip


def test_pascal_repeats_its_list_to_1000_episodes(tmp_path):
    voc(tmp_path, names=("a", "b", "c"), values=(0, 6, 7, 255))
    lines = ["a__07", "b__06", "a__06"]
    write_list(tmp_path / "few_shot_splits/pascal/val/fold1.txt", lines)
    records = load_pascal5i(tmp_path, 1, train=False)
    assert len(records) == 1000
    assert [r["few_shot_class"] for r in records[:4]] == [2, 1, 1, 2]
    assert records[999] == records[0]
    assert [r["class_names"] for r in records[:2]] == [("others", "car"), ("others", "bus")]
    first = read_label_map(records[0], 2)
    assert (first == filled((0, 0, 1, 255))).all()  # the outline is ignored, the bus is another
    assert (read_label_map(records[1], 2) == filled((0, 1, 0, 255))).all()


def test_training_on_the_other_folds(tmp_path):
    voc(tmp_path, names=("a",), values=(0, 1, 20, 255))
    for fold, line in enumerate(("a__01", "a__06", "a__11", "a__20")):
        write_list(tmp_path / f"few_shot_splits/pascal/trn/fold{fold}.txt", [line])
    records = load_pascal5i(tmp_path, 1, train=True)
    assert [r["few_shot_class"] for r in records] == [1, 6, 15]  # without fold 1
    assert (read_label_map(records[0], 2) == filled((0, 1, 0, 0))).all()  # outlines are "others"
    write_list(tmp_path / "few_shot_splits/pascal/trn/fold0.txt", ["a__06"])
    with pytest.raises(OVDError, match="fold0.txt has the line 'a__06'"):
        load_pascal5i(tmp_path, 1, train=True)


def test_coco_draws_classes_and_images_as_numpy_does(tmp_path):
    images = coco20i(tmp_path, 2)
    np.random.seed(0)  # noqa: NPY002 (the protocol)
    drawn = []
    for _ in range(1000):
        c = np.random.choice([2 + 4 * v for v in range(20)], 1, replace=False)[0]  # noqa: NPY002
        drawn.append((c, np.random.choice(images[c], 1, replace=False)[0]))  # noqa: NPY002
    records = load_coco20i(tmp_path, 2, train=False)
    assert [r["few_shot_class"] for r in records] == [(c - 2) // 4 + 1 for c, _ in drawn]
    assert [r["file_name"] for r in records] == [str(tmp_path / "COCO2014" / n) for _, n in drawn]
    names = MetadataCatalog.get("coco20i_fold2_val").stuff_classes
    for record in records[:30]:
        assert record["class_names"] == ("others", names[record["few_shot_class"]])
    assert (read_label_map(records[0], 2) == filled((1, 0, 0))).all()


def test_lists_of_coco_run_no_code(tmp_path):
    path = tmp_path / "few_shot_splits/coco/val/fold0.pkl"
    path.parent.mkdir(parents=True)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(OVDError, match="fold0.pkl is refused"):
        load_coco20i(tmp_path, 0, train=False)
    assert not (tmp_path / "written").exists()
    path.write_bytes(pickle.dumps({0: ["a.jpg"]}))
    with pytest.raises(OVDError, match="lacks images of some class of fold 0"):
        load_coco20i(tmp_path, 0, train=False)


def test_fss_takes_all_images_of_the_sorted_classes(tmp_path):
    fss1000(tmp_path)
    records = load_fss1000(tmp_path, "test", name="fss1000_test")
    assert MetadataCatalog.get("fss1000_test").stuff_classes == ["others", "a cat", "b_cup"]
    assert [r["few_shot_class"] for r in records] == [1, 1, 1, 2, 2, 2]
    assert records[4]["class_names"] == ("others", "b_cup")
    assert (read_label_map(records[4], 2) == filled((0, 0, 1, 1))).all()  # from grey 128 on
    (tmp_path / "FSS-1000/b_cup").rename(tmp_path / "FSS-1000/gone")
    with pytest.raises(OVDError, match="b_cup holds no .jpg"):
        load_fss1000(tmp_path, "test", name="fss1000_test")


def test_lists_that_are_missing_are_named(tmp_path):
    for load, options in ((load_pascal5i, {}), (load_coco20i, {})):
        with pytest.raises(OVDError, match="few_shot_splits.* is missing: get the lists"):
            load(tmp_path, 0, train=False, **options)
