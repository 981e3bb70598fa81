"""Grounded captions: MDETR's json as records, written and read again, and mini's."""

import json
import logging
import os
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ovd_d2.data  # noqa: F401
from ovd_d2.data.datasets import builtin
from ovd_d2.data.datasets.grounding import (
    load_grounding_json,
    register_grounding_file,
    write_grounding_json,
)
from ovd_d2.data.datasets.mini.captions import grounded_caption, image_caption
from ovd_d2.data.datasets.mini.categories import load_categories
from ovd_d2.data.datasets.mini.grounding import GROUNDING, load_mini_grounding
from ovd_d2.data.datasets.mini.splits import rng_for
from ovd_d2.data.named_datasets import check_registered
from ovd_d2.errors import OVDError
from ovd_d2.structures import TokenSpans

CAPTION = "a man with a red hat and a dog"


def content():
    """Image 1: two phrases, the man with two boxes; image 2 (of COCO): asked for, no box."""
    box = {"category_id": 1, "area": 1.0, "iscrowd": 0}
    return {
        "info": {"description": "grounded"},
        "images": [
            {"id": 2, "file_name": "2.jpg", "height": 40, "width": 50, "caption": "two cats",
             "data_source": "coco", "tokens_positive_eval": [[[4, 8]]]},
            {"id": 1, "file_name": "1.jpg", "height": 40, "width": 50, "caption": CAPTION,
             "sentence_id": 3, "original_img_id": 77, "data_source": "vg"},
        ],
        "categories": [{"id": 1, "name": "object", "supercategory": "object"}],
        "annotations": [
            {"id": 5, "image_id": 1, "bbox": [1, 2, 10, 20], "tokens_positive": [[2, 5]], **box},
            {"id": 6, "image_id": 1, "bbox": [3, 2, 5, 5],
             "tokens_positive": [[17, 20], [13, 16]], **box},
            {"id": 7, "image_id": 1, "bbox": [20, 2, 10, 20], "tokens_positive": [[2, 5]], **box},
        ],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path


def load(folder, entries, **options):
    path = folder / "grounding.json"
    path.write_text(json.dumps(entries))
    return load_grounding_json(path, str(folder / "images"), **options)


def test_records(folder):
    first, second = load(folder, content())
    assert first["file_name"] == str(folder / "images/1.jpg")
    assert (first["image_id"], first["height"], first["width"]) == (1, 40, 50)
    assert first["caption"] == TokenSpans(CAPTION, [[(2, 5)], [(13, 16), (17, 20)]])
    assert first["caption"].phrases() == ("man", "red hat")
    assert [a["category_id"] for a in first["annotations"]] == [0, 1, 0]
    assert [a["bbox"] for a in first["annotations"]][1] == [3, 2, 5, 5]
    assert {a["bbox_mode"] for a in first["annotations"]} == {BoxMode.XYWH_ABS}
    assert (first["sentence_id"], first["original_img_id"]) == (3, 77)
    assert second["caption"].phrases() == ("cats",) and second["annotations"] == []
    (only,) = load(folder, content(), without_coco=True)
    assert only["image_id"] == 1


def test_phrases_that_are_asked_for_come_first(folder):
    entries = content()
    entries["images"][1]["tokens_positive_eval"] = [[[25, 30]], [[13, 16], [17, 20]]]
    record = load(folder, entries)[0]
    assert record["caption"].phrases() == ("a dog", "red hat", "man")
    assert [a["category_id"] for a in record["annotations"]] == [2, 1, 2]


def test_boxes_of_no_phrase_are_left_out_and_counted(folder, caplog):
    entries = content()
    entries["annotations"][0]["tokens_positive"] = []
    with caplog.at_level(logging.WARNING, logger="ovd_d2"):
        assert len(load(folder, entries)[0]["annotations"]) == 2
    assert "1 boxes belong to no phrase" in caplog.text and "annotation 5" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][1].update(tokens_positive=[[2, 99]]),
         r"tokens_positive of annotation 6 has the span \[2, 99\]; .* <= 30"),
        (lambda c: c["annotations"][1].update(tokens_positive=[[5, 2]]), r"\[5, 2\]"),
        (lambda c: c["annotations"][1].update(tokens_positive=[7]), "span 7"),
        (lambda c: c["annotations"][1].update(tokens_positive="no"), "is 'no'; give a list"),
        (lambda c: c["annotations"][1].pop("tokens_positive"), "annotation 6 is None; give a list"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, -3, 4]), "annotation 6 has the bbox"),
        (lambda c: c["annotations"][1].update(image_id=9), "is of image 9"),
        (lambda c: c["images"][1].pop("caption"), "image 1 has the caption None; give a text"),
        (lambda c: c["images"][1].update(caption=3), "image 1 has the caption 3"),
        (lambda c: c["images"][0].update(tokens_positive_eval=[[[4, 9]]]),
         r"tokens_positive_eval of image 2 has the span \[4, 9\]"),
        (lambda c: c["images"][0].update(tokens_positive_eval=3), "tokens_positive_eval 3"),
        (lambda c: c.pop("images"), "lacks the entry 'images'"),
        (lambda c: c.pop("annotations"), "lacks the entry 'annotations'"),
        (lambda c: c.update(images=[], annotations=[]), "holds no image"),
    ],
)  # fmt: skip
def test_wrong_entries_are_named(folder, change, message):
    entries = content()
    change(entries)
    with pytest.raises(OVDError, match=message) as error:
        load(folder, entries)
    assert "grounding.json" in str(error.value)


def test_missing_files_are_named(folder):
    with pytest.raises(OVDError, match=r"no\.json is missing: .*section 'Grounding'"):
        load_grounding_json(folder / "no.json", "images")
    (folder / "images").rmdir()
    with pytest.raises(OVDError, match="image folder .*images is missing"):
        load(folder, content())
    with pytest.raises(OVDError, match="lacks the entry 'image_root'"):
        load_grounding_json(folder / "grounding.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON, st.sampled_from(["caption", "tokens_positive_eval", "data_source", "file_name"]),
       st.sampled_from(["tokens_positive", "bbox", "id"]))  # fmt: skip
def test_no_file_ends_in_a_traceback(folder, value, of_image, of_annotation):
    sentences = []
    for kind, key in (("images", of_image), ("annotations", of_annotation)):
        entries = content()
        entries[kind][1][key] = value
        try:
            load(folder, entries, without_coco=True)
        except OVDError as error:
            sentences.append(str(error))
    assert not any("\n" in sentence for sentence in sentences)


def test_what_is_written_is_read_again(folder):
    records = load(folder, content())
    records[0]["annotations"][0]["score"] = 0.75
    xyxy = {"bbox": [3, 2, 8, 7], "bbox_mode": BoxMode.XYXY_ABS}
    out = folder / "out" / "written.json"
    out.parent.mkdir()
    given = [dict(record) for record in records]
    given[0]["annotations"] = [dict(a) for a in records[0]["annotations"]]
    given[0]["annotations"][1].update(xyxy)
    write_grounding_json(out, given, folder / "images", {"detector": "glip"})
    assert json.loads(out.read_text())["info"] == {
        "kind": "ovd_d2 grounding", "image_root": "../images", "detector": "glip"
    }  # fmt: skip
    again = load_grounding_json(out)
    for before, after in zip(records, again, strict=True):
        assert os.path.samefile(os.path.dirname(after["file_name"]), folder / "images")
        assert [{**a, "iscrowd": 0} for a in before.pop("annotations")] == after.pop("annotations")
        assert {**before, "file_name": ""} == {**after, "file_name": ""}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(caption="a cat"), r"caption of .*1\.jpg is 'a cat'; give TokenSpans"),
        (lambda r: r["annotations"][0].update(category_id=2), "category_id 2, .* has 2 phrases"),
        (lambda r: r["annotations"][0].update(bbox=[0, 0, float("nan"), 1]), "which is no box"),
    ],
)
def test_nothing_is_written_of_wrong_records(folder, change, message):
    records = load(folder, content())
    change(records[0])
    with pytest.raises(OVDError, match=message):
        write_grounding_json(folder / "out.json", records, folder / "images")
    assert not (folder / "out.json").exists()


def test_named_by_its_file(folder):
    load(folder, content())
    name = f"grounding:{folder / 'images'}:{folder / 'grounding.json'}"
    check_registered("DATASETS.TRAIN", [name])
    assert len(DatasetCatalog.get(name)) == 2
    assert MetadataCatalog.get(name).evaluator_type == "phrase_grounding"
    write_grounding_json(folder / "own.json", DatasetCatalog.get(name), folder / "images")
    assert register_grounding_file(f"grounding:{folder / 'own.json'}")
    assert len(DatasetCatalog.get(f"grounding:{folder / 'own.json'}")) == 2
    assert not register_grounding_file("mini_v1_val")
    with pytest.raises(OVDError, match="must be grounding:IMAGE_FOLDER:FILE.json"):
        register_grounding_file("grounding:")


def test_registered_names():
    for name in ("flickr30k_train", "flickr30k_val", "flickr30k_test", "gqa_vg_train"):
        assert name in DatasetCatalog
        metadata = MetadataCatalog.get(name)
        wanted = None if name.endswith("train") else "phrase_grounding"
        assert metadata.get("evaluator_type") == wanted
        assert metadata.readme_section == "Grounding"
        assert metadata.get("thing_classes") is None  # phrases are no classes
    text = (Path(__file__).parents[2] / "datasets/README.md").read_text(encoding="utf-8")
    assert "\n## Grounding\n" in text
    for splits in (builtin.GROUNDING_SPLITS, builtin.GQA_VG_SPLITS):
        for json_file, image_root, _ in splits.values():
            pattern = os.path.basename(json_file)
            for split in ("train", "val", "test"):
                pattern = pattern.replace(f"GT_{split}", "GT_{train,val,test}")
            assert pattern in text and f"  {image_root.split('/')[0]}/\n" in text


def test_captions_of_mini_say_where_their_nouns_are():
    categories = list(load_categories())
    for index in range(0, 160, 5):
        shown = [categories[index], categories[index - 3], categories[index], categories[index - 1]]
        caption, named = grounded_caption(rng_for(index), shown)
        assert {c.name for c, _ in named} == {c.name for c in shown} and len(named) == 3
        for category, (begin, end) in named:
            assert caption[begin:end] in category.synonyms
        assert [span for _, span in named] == sorted(span for _, span in named)
        assert image_caption(rng_for(index), shown, "grass").startswith(caption)


def test_mini_names_exactly_what_has_boxes(mini_root):
    categories = load_categories()
    counts = {}
    for name, annotation_set in GROUNDING.items():
        records = DatasetCatalog.get(name)
        stock = {r["image_id"]: r for r in DatasetCatalog.get(f"mini_v1_{annotation_set}")}
        counts[name] = (len(records), sum(len(r["annotations"]) for r in records))
        for record in records:
            boxes = stock[record["image_id"]]["annotations"]
            classes = record["phrase_classes"]
            assert len(set(classes)) == len(classes) == len(record["caption"])
            assert set(classes) == {a["category_id"] for a in boxes}
            for ours, theirs in zip(record["annotations"], boxes, strict=True):
                assert classes[ours["category_id"]] == theirs["category_id"]
                assert ours["bbox"] == theirs["bbox"]
            for place, phrase in zip(classes, record["caption"].phrases(), strict=True):
                assert phrase in categories[place].synonyms
        novel = [categories[c].is_novel for r in records for c in r["phrase_classes"]]
        assert any(novel) == (annotation_set != "train_base")
        assert DatasetCatalog.get(name) == records  # the same each time
    assert counts["mini_v1_grounding_train"] == (1197, 4615)
    assert counts["mini_v1_grounding_val"] == (400, 2020)
    assert counts["mini_v1_grounding_test"] == (800, 4025)


def test_mini_that_is_not_built(tmp_path):
    with pytest.raises(OVDError, match="run `ovd mini build`"):
        load_mini_grounding(str(tmp_path / "val.json"), str(tmp_path), "val")
