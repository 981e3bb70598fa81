"""Flickr30k Entities and RefCOCO: what is read, and every wrong file in one sentence."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

import ovd_d2.data  # noqa: F401
from ovd_d2.data.datasets.flickr30k_entities import (
    load_flickr30k_entities,
    parse_annotation,
    parse_sentences,
)
from ovd_d2.data.datasets.referring_expressions import SPLITS, load_referring_expressions
from ovd_d2.errors import OVDError

GOLDEN = Path(__file__).parents[1] / "golden" / "evaluators"
INPUT = json.loads((GOLDEN / "flickr_grounding_input.json").read_text())


@pytest.fixture
def entities(tmp_path):
    """A folder in the layout of Flickr30k Entities, with the golden files of the val split."""
    for folder in ("Annotations", "Sentences", "images"):
        (tmp_path / folder).mkdir()
    ids = [str(i) for i in INPUT["split"]["val"]]
    (tmp_path / "val.txt").write_text("\n".join(ids) + "\n")
    for image_id in ids:
        (tmp_path / f"Annotations/{image_id}.xml").write_text(INPUT["annotations_xml"][image_id])
        (tmp_path / f"Sentences/{image_id}.txt").write_text(INPUT["sentences_txt"][image_id])
    return tmp_path


def load(folder):
    split_file = str(folder / "val.txt")
    return load_flickr30k_entities(split_file, str(folder), str(folder / "images"))


@pytest.mark.parametrize("split", ["test", "val"])
def test_golden_boxes_and_phrases(split):
    for image_id, expected in INPUT["parsed_by_reference"][split].items():
        boxes, height, width = parse_annotation(INPUT["annotations_xml"][image_id], "xml")
        assert boxes == expected["boxes"]
        size = f"<width>{width}</width><height>{height}</height>"
        assert size in INPUT["annotations_xml"][image_id]
        sentences = parse_sentences(INPUT["sentences_txt"][image_id], "txt")
        assert len(sentences) == len(expected["sentences"])
        for (caption, phrases), wanted in zip(sentences, expected["sentences"], strict=True):
            kept = [p for p in phrases if p["entity"] in boxes]
            found = [
                {
                    "first_word_index": caption[: p["spans"][0][0]].count(" "),
                    "phrase": caption[slice(*p["spans"][0])],
                    "phrase_id": p["entity"],
                    "phrase_type": p["types"],
                }
                for p in kept
            ]
            assert found == (wanted or [])


def test_records(entities):
    records = load(entities)
    ids = [int(i) for i in INPUT["split"]["val"]]
    places = [ids.index(r["image_id"]) for r in records]
    assert places == sorted(places)
    first, image_id = records[0], ids[0]
    assert first["file_name"] == str(entities / "images" / f"{image_id}.jpg")
    assert (first["image_id"], first["sentence_id"]) == (image_id, 0)
    assert first["caption"] == "bright woman street woman woman arm two ."
    words = [first["caption"][slice(*p["spans"][0])] for p in first["phrases"]]
    assert words == ["street", "woman", "woman arm two"]
    assert first["phrases"][1]["types"] == ["bodyparts", "instruments"]
    assert first["phrases"][0]["boxes"] == [[136, 40, 306, 118]]
    assert (first["height"], first["width"]) == (466, 443)
    assert all(p["boxes"] for r in records for p in r["phrases"])
    # the second sentence has only a phrase without boxes
    assert [r["sentence_id"] for r in records if r["image_id"] == image_id] == [0, 2, 4]


def test_a_document_type_is_refused_before_anything_expands():
    lines = [f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12)]
    bomb = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "ha">' + "".join(lines) + "]>"
    with pytest.raises(OVDError, match="bad.xml has a document type"):
        parse_annotation(bomb + "<annotation>&a11;</annotation>", "bad.xml")
    with pytest.raises(OVDError, match="document type"):
        parse_annotation('<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "bad.xml")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "<annotation>",
        "<annotation/>",
        "<annotation><size><width>x</width><height>3</height></size></annotation>",
        "<annotation><object><name>1</name><bndbox><xmin>1</xmin></bndbox></object></annotation>",
    ],
)
def test_broken_annotations(content):
    with pytest.raises(OVDError, match="bad.xml is no annotation of Flickr30k Entities"):
        parse_annotation(content, "bad.xml")


def test_broken_sentences_and_missing_files(entities):
    for line in ("[/EN#1/people", "[/EN#1 girl] x", "a /EN#1/people girl]"):
        with pytest.raises(OVDError, match="bad.txt has a sentence with a phrase that is not"):
            parse_sentences(line, "bad.txt")
    assert parse_sentences("\n\n  \n", "empty.txt") == []
    assert parse_sentences("No phrase . \n", "one.txt") == [("No phrase .", [])]
    image_id = INPUT["split"]["val"][0]
    (entities / f"Sentences/{image_id}.txt").unlink()
    with pytest.raises(OVDError, match=f"{image_id}.txt cannot be read.*'Flickr30k Entities'"):
        load(entities)
    (entities / "val.txt").write_text("../../x")
    with pytest.raises(OVDError, match="names the image '../../x': give ids"):
        load(entities)
    (entities / "val.txt").write_text("")
    with pytest.raises(OVDError, match="empty"):
        load(entities)


# RefCOCO ------------------------------------------------------------------------------------------


def load_refexp(folder, change=lambda content: None):
    content = json.loads((GOLDEN / "refexp_gt.json").read_text())
    change(content)
    path = folder / "finetune_refcoco_val.json"
    path.write_text(json.dumps(content))
    (folder / "train2014").mkdir(exist_ok=True)
    return load_referring_expressions(str(path), str(folder / "train2014"))


def test_expressions(tmp_path):
    records = load_refexp(tmp_path)
    assert [r["image_id"] for r in records] == sorted(r["image_id"] for r in records)
    assert len(records) == 114 and {r["dataset_name"] for r in records} == set(SPLITS)
    record = next(r for r in records if r["image_id"] == 7)
    assert record["phrases"][0]["boxes"] == [[165.0, 179.0, 269.0, 228.0]]
    assert record["caption"][slice(*record["phrases"][0]["spans"][0])] == record["caption"]
    assert record["file_name"].startswith(str(tmp_path / "train2014"))
    assert "annotations" not in record


def test_broken_expressions(tmp_path):
    def second_box(content):
        content["annotations"].append({**content["annotations"][0], "id": 9})

    with pytest.raises(OVDError, match="image 7 has 2 boxes and the caption.*'RefCOCO'"):
        load_refexp(tmp_path, second_box)
    with pytest.raises(OVDError, match="has 0 boxes"):
        load_refexp(tmp_path, lambda content: content["annotations"].pop())
    with pytest.raises(OVDError, match="and the caption None"):
        load_refexp(tmp_path, lambda content: content["images"][0].pop("caption"))
    with pytest.raises(OVDError, match="missing.json is missing"):
        load_referring_expressions("missing.json", str(tmp_path))


def test_registration():
    for split in ("val", "test"):
        metadata = MetadataCatalog.get(f"flickr30k_entities_{split}")
        assert metadata.evaluator_type == "phrase_grounding"
    names = [f"{name}_{split}" for name, splits in SPLITS.items() for split in splits]
    assert len(names) == 8 and {"refcoco+_testA", "refcocog_test"} <= set(names)
    for name in names:
        assert name in DatasetCatalog
        assert MetadataCatalog.get(name).evaluator_type == "refexp"
        assert MetadataCatalog.get(name).json_file.endswith(f"/finetune_{name}.json")
    for name in ("refcoco_val", "flickr30k_entities_val"):
        with pytest.raises(OVDError, match="section '(RefCOCO|Flickr30k Entities)' of datasets"):
            DatasetCatalog.get(name)
