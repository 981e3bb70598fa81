"""LVIS and COCO-OVD splits: names, filters, metadata, and every wrong file in one sentence."""

import json
import os
import re
import sys

import numpy as np
import pycocotools.mask as mask_utils
import pytest
import warm_processes
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ovd_d2.data  # noqa: F401
from ovd_d2.data.datasets import builtin, coco_ovd, lvis
from ovd_d2.errors import OVDError

SQUARE = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0]]
IS_NOVEL = lvis.lvis_v1_metadata(train=False)["is_novel"]
RARE = IS_NOVEL.index(True) + 1  # dataset ids count from 1
FREQUENT = IS_NOVEL.index(False) + 1


def annotation(id_, image_id, category_id, **more):
    box = {"bbox": [1.0, 1.0, 8.0, 8.0], "area": 64.0, "segmentation": SQUARE}
    return {"id": id_, "image_id": image_id, "category_id": category_id, **box, **more}


def lvis_image(id_, neg=(), not_exhaustive=()):
    return {
        "id": id_,
        "height": 20,
        "width": 30,
        "coco_url": f"http://host/val2017/{id_:012d}.jpg",
        "neg_category_ids": list(neg),
        "not_exhaustive_category_ids": list(not_exhaustive),
    }


def coco_image(id_):
    return {"id": id_, "height": 20, "width": 30, "file_name": f"{id_:012d}.jpg"}


def lvis_content():
    return {
        "categories": [{"id": i, "name": str(i)} for i in (RARE, FREQUENT)],
        "images": [
            lvis_image(3),
            lvis_image(1, neg=[RARE, FREQUENT], not_exhaustive=[RARE]),
            lvis_image(2),
        ],
        "annotations": [
            annotation(1, 1, FREQUENT),
            annotation(2, 1, RARE),
            annotation(3, 2, RARE),
        ],
    }


def coco_content():
    ids = {c["name"]: c["id"] for c in coco_ovd.COCO_CATEGORIES}
    crowd = {"iscrowd": 1, "segmentation": {"size": [20, 30], "counts": [0, 60, 540]}}
    return {
        "info": {},
        "categories": [
            {"id": c["id"], "name": c["name"]} for c in coco_ovd.COCO_CATEGORIES if c["isthing"]
        ],
        "images": [coco_image(i) for i in (9, 4, 5, 6, 7)],
        "annotations": [
            annotation(1, 4, ids["person"], iscrowd=0),
            annotation(2, 4, ids["cat"], iscrowd=0),
            annotation(3, 4, ids["stop sign"], iscrowd=0),
            annotation(4, 5, ids["cat"], iscrowd=0),
            annotation(5, 6, ids["stop sign"], iscrowd=0),
            annotation(6, 9, ids["toothbrush"], **crowd),
        ],
    }


def write(folder, content):
    (folder / "val2017").mkdir(exist_ok=True)
    path = folder / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def load_lvis(folder, content, **options):
    return lvis.load_lvis_v1(write(folder, content), str(folder), **options)


def load_coco(folder, content, base_only=False):
    path = write(folder, content)
    return coco_ovd.load_coco_ovd(path, str(folder / "val2017"), base_only=base_only)


# Registration ------------------------------------------------------------------------------------


def test_import_registers_under_the_environment_variable_and_reads_nothing(tmp_path):
    code = (
        "import ovd_d2.data\n"
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "for n in ('lvis_v1_train_base', 'lvis_v1_val_ovd', 'coco_2017_ovd_train_base',\n"
        "          'coco_2017_ovd_val', 'mini_v1_train_base', 'mini_v1_test'):\n"
        "    assert n in DatasetCatalog, n\n"
        "    print(MetadataCatalog.get(n).json_file)\n"
    )
    root = tmp_path / "does not exist"
    environment = {**os.environ, "DETECTRON2_DATASETS": str(root)}
    run = warm_processes.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    paths = run.stdout.split("\n")
    assert paths[0] == str(root / "lvis/lvis_v1_train.json")
    assert paths[3] == str(root / "coco/annotations/instances_val2017.json")
    assert paths[4].startswith(str(root))
    assert not root.exists()


def test_registering_again_is_refused_by_name_but_importing_again_is_not(monkeypatch):
    import importlib

    importlib.reload(builtin)
    with pytest.raises(AssertionError, match="already registered"):
        builtin.register_all("elsewhere")


@pytest.mark.parametrize(
    "name", [*builtin.LVIS_SPLITS, *builtin.COCO_SPLITS, *builtin.COCO_SPLITS_OF_80]
)
def test_metadata_lengths_agree(name):
    metadata = MetadataCatalog.get(name)
    lvis_like = name.startswith("lvis")
    num_classes = 1203 if lvis_like else 80 if "_80_" in name else 65
    unused = 15 if name == "coco_2017_ovd_80_train_base" else 0  # held out of training
    assert len(metadata.thing_classes) == len(set(metadata.thing_classes)) == num_classes
    assert len(metadata.is_novel) == num_classes
    assert sum(metadata.is_novel) == (337 if lvis_like else 17 + unused)
    assert metadata.evaluator_type == ("lvis" if lvis_like else "coco_ovd")
    if lvis_like:
        assert [len(x) for x in (metadata.synonyms, metadata.definitions)] == [1203, 1203]
        assert all(n == s[0] for n, s in zip(metadata.thing_classes, metadata.synonyms))
        assert [c["id"] for c in metadata.class_image_count] == list(range(1, 1204))


def test_training_counts_are_zero_exactly_for_novel_classes():
    counts = lvis.lvis_v1_metadata(train=True)["class_image_count"]
    assert [c["image_count"] == 0 for c in counts] == IS_NOVEL
    full = lvis.lvis_v1_metadata(train=False)["class_image_count"]
    assert all(0 < c["image_count"] <= 10 for c, n in zip(full, IS_NOVEL) if n)


def test_coco_lists_are_disjoint_and_partly_leave_out_coco():
    base, novel = set(coco_ovd.BASE_CLASSES), set(coco_ovd.NOVEL_CLASSES)
    assert (len(base), len(novel), len(base & novel)) == (48, 17, 0)
    all_names = {c["name"] for c in coco_ovd.COCO_CATEGORIES if c["isthing"]}
    assert len(all_names - base - novel) == 15
    assert base | novel <= all_names
    metadata = coco_ovd.coco_ovd_metadata()
    names = np.array(metadata["thing_classes"])
    assert metadata == coco_ovd.coco_ovd_metadata(train=True)
    assert set(names[metadata["is_novel"]]) == novel
    ids = metadata["thing_dataset_id_to_contiguous_id"]
    assert list(ids) == sorted(ids)
    assert list(ids.values()) == list(range(65))
    assert names[ids[1]] == "person" and names[ids[90]] == "toothbrush"


# LVIS --------------------------------------------------------------------------------------------


def test_lvis_base_training_drops_novel_annotations_and_keeps_every_image(tmp_path):
    records = load_lvis(tmp_path, lvis_content(), removed_classes=IS_NOVEL)
    assert [r["image_id"] for r in records] == [1, 2, 3]
    assert [len(r["annotations"]) for r in records] == [1, 0, 0]
    assert records[0]["annotations"][0]["category_id"] == FREQUENT - 1
    assert records[0]["neg_category_ids"] == [FREQUENT]
    assert records[0]["not_exhaustive_category_ids"] == []
    assert records[0]["file_name"] == str(tmp_path / "val2017/000000000001.jpg")


def test_lvis_evaluation_keeps_everything(tmp_path):
    records = load_lvis(tmp_path, lvis_content())
    assert [[a["category_id"] + 1 for a in r["annotations"]] for r in records] == [
        [FREQUENT, RARE],
        [RARE],
        [],
    ]
    assert records[0]["neg_category_ids"] == [RARE, FREQUENT]


def test_registered_lvis_training_split_is_filtered(tmp_path):
    path = write(tmp_path, lvis_content())
    name = "test_lvis_train_base"
    try:
        lvis.register_lvis_ovd(name, path, str(tmp_path), train=True)
        records = DatasetCatalog.get(name)
        assert not any(IS_NOVEL[a["category_id"]] for r in records for a in r["annotations"])
        assert MetadataCatalog.get(name).is_novel == IS_NOVEL  # loading changes no metadata
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_lvis_v05_file_is_recognised(tmp_path):
    content = lvis_content()
    content["categories"].append({"id": 1230, "name": "zucchini"})
    content["annotations"].append(annotation(9, 1, 1230))
    with pytest.raises(OVDError, match="category id 1230 but LVIS v1 ends at 1203"):
        load_lvis(tmp_path, content)


def test_lvis_training_without_base_annotations_is_empty(tmp_path):
    content = lvis_content()
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == RARE]
    assert len(load_lvis(tmp_path, content)) == 3
    with pytest.raises(OVDError, match="data set is empty"):
        load_lvis(tmp_path, content, removed_classes=IS_NOVEL)


# COCO --------------------------------------------------------------------------------------------


def test_coco_evaluation_keeps_images_with_base_or_novel_boxes(tmp_path):
    records = load_coco(tmp_path, coco_content())
    names = coco_ovd.coco_ovd_metadata()["thing_classes"]
    found = {r["image_id"]: [names[a["category_id"]] for a in r["annotations"]] for r in records}
    assert list(found) == [4, 5, 9]
    assert found == {4: ["person", "cat"], 5: ["cat"], 9: ["toothbrush"]}


def test_coco_base_training_keeps_images_with_base_boxes_only(tmp_path):
    records = load_coco(tmp_path, coco_content(), base_only=True)
    names = coco_ovd.coco_ovd_metadata()["thing_classes"]
    found = {r["image_id"]: [names[a["category_id"]] for a in r["annotations"]] for r in records}
    assert found == {4: ["person"], 9: ["toothbrush"]}
    person, crowd = (r["annotations"][0] for r in records)
    assert person["segmentation"] == SQUARE and person["iscrowd"] == 0
    assert person["bbox_mode"] == BoxMode.XYWH_ABS
    assert crowd["iscrowd"] == 1
    assert mask_utils.area(crowd["segmentation"]) == 60
    assert records[0]["file_name"] == str(tmp_path / "val2017/000000000004.jpg")


@pytest.mark.parametrize("base_only", [False, True])
def test_among_80_names_coco_has_the_same_images_and_boxes(tmp_path, base_only):
    records = load_coco(tmp_path, coco_content(), base_only=base_only)
    path = write(tmp_path, coco_content())
    folder = str(tmp_path / "val2017")
    of_80 = coco_ovd.load_coco_ovd(path, folder, base_only=base_only, all_names=True)
    names_of = [coco_ovd.coco_ovd_metadata(all_names=a)["thing_classes"] for a in (False, True)]
    assert [r["image_id"] for r in of_80] == [r["image_id"] for r in records]
    for one, other in zip(records, of_80):
        named = [
            [{**a, "category_id": names[a["category_id"]]} for a in r["annotations"]]
            for names, r in zip(names_of, (one, other))
        ]
        assert named[0] == named[1]


def test_coco_synonyms_are_lvis_words_for_the_same_class():
    """41 words of 21 of the 65 classes (and 14 of 8 unused ones), by lvis-api's mapping."""
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

    synsets = {
        "bicycle": "bicycle.n.01", "fire hydrant": "fireplug.n.01", "handbag": "bag.n.04",
        "tie": "necktie.n.01", "suitcase": "bag.n.06", "skis": "ski.n.01", "mouse": "mouse.n.04",
        "sports ball": "ball.n.06", "hot dog": "sausage.n.01", "donut": "doughnut.n.02",
        "wine glass": "wineglass.n.01", "couch": "sofa.n.01", "potted plant": "pot.n.04",
        "tv": "television_receiver.n.01", "remote": "remote_control.n.01",
        "keyboard": "computer_keyboard.n.01", "cell phone": "cellular_telephone.n.01",
        "microwave": "microwave.n.02", "hair drier": "hand_blower.n.01",
    }  # fmt: skip
    words_of = {
        c["synset"]: [w.split("(")[0].replace("_", " ").strip().lower() for w in c["synonyms"]]
        for c in LVIS_CATEGORIES
    }
    for name, words in coco_ovd.SYNONYMS.items():
        synset = synsets.get(name, f"{name.replace(' ', '_')}.n.01")
        assert [w for w in words_of[synset] if w != name] == list(words), name
    scored = {*coco_ovd.BASE_CLASSES, *coco_ovd.NOVEL_CLASSES}
    counts = [len(words) for name, words in coco_ovd.SYNONYMS.items() if name in scored]
    assert (len(counts), sum(counts)) == (21, 41)
    metadata = MetadataCatalog.get("coco_2017_ovd_80_train_base")
    words = dict(zip(metadata.thing_classes, metadata.synonyms))
    assert words["couch"] == ["couch", "sofa", "lounge"] and words["cat"] == ["cat"]


def test_coco_agrees_with_detectron2s_own_loader(tmp_path):
    from detectron2.data.datasets.coco import load_coco_json

    path = write(tmp_path, coco_content())
    metadata = coco_ovd.coco_ovd_metadata()
    to_contiguous = metadata["thing_dataset_id_to_contiguous_id"]
    expected = load_coco_json(path, str(tmp_path / "val2017"))
    for record in expected:
        kept = [a for a in record["annotations"] if a["category_id"] in to_contiguous]
        record["annotations"] = [
            {**a, "category_id": to_contiguous[a["category_id"]]} for a in kept
        ]
    assert load_coco(tmp_path, coco_content()) == [r for r in expected if r["annotations"]]


def test_lvis_agrees_with_detectron2s_own_loader(tmp_path):
    from detectron2.data.datasets.lvis import load_lvis_json

    path = write(tmp_path, lvis_content())
    assert load_lvis(tmp_path, lvis_content()) == load_lvis_json(path, str(tmp_path) + "/")


def test_coco_file_without_one_of_the_categories(tmp_path):
    content = coco_content()
    content["categories"] = content["categories"][1:]
    content["annotations"] = content["annotations"][1:]
    with pytest.raises(OVDError, match=r"lacks 1 of the 65 COCO categories .*id 1\b"):
        load_coco(tmp_path, content)


def test_coco_annotations_of_unlisted_images(tmp_path):
    content = coco_content()
    content["images"] = content["images"][1:]
    with pytest.raises(OVDError, match="does not list"):
        load_coco(tmp_path, content)


# Wrong files -------------------------------------------------------------------------------------

LOADERS = [(load_lvis, lvis_content, "LVIS"), (load_coco, coco_content, "COCO")]


@pytest.mark.parametrize(
    "load, section", [(lvis.load_lvis_v1, "LVIS"), (coco_ovd.load_coco_ovd, "COCO")]
)
def test_missing_file_names_the_path_and_the_section(tmp_path, load, section):
    path = tmp_path / "nowhere" / "annotations.json"
    options = {"base_only": False} if section == "COCO" else {}
    with pytest.raises(OVDError) as error:
        load(str(path), str(tmp_path), **options)
    assert str(path) in str(error.value)
    assert f"section '{section}' of datasets/README.md" in str(error.value)


def test_the_readme_has_the_sections():
    readme = os.path.join(os.path.dirname(__file__), "..", "..", "datasets", "README.md")
    with open(readme, encoding="utf-8") as f:
        headings = [line.strip() for line in f if line.startswith("## ")]
    for section in (lvis.README_SECTION, coco_ovd.README_SECTION):
        assert f"## {section}" in headings


@pytest.mark.parametrize("load, content, section", LOADERS)
@pytest.mark.parametrize("key", ["categories", "annotations", "images"])
def test_json_without_a_part(tmp_path, load, content, section, key):
    content = content()
    del content[key]
    with pytest.raises(OVDError, match=f"annotations.json lacks the entry '{key}'.*{section}"):
        load(tmp_path, content)


@pytest.mark.parametrize("load, content, section", LOADERS)
def test_json_without_images(tmp_path, load, content, section):
    content = {**content(), "images": [], "annotations": []}
    with pytest.raises(OVDError, match=f"data set is empty.*{section}"):
        load(tmp_path, content)


@pytest.mark.parametrize("load, content, section", LOADERS)
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"images": 3}', "\x00"])
def test_broken_json(tmp_path, load, content, section, text):
    with pytest.raises(OVDError, match=f"annotations.json .*{section}"):
        load(tmp_path, text)


@pytest.mark.parametrize("load, content, section", LOADERS)
def test_missing_image_folder(tmp_path, load, content, section):
    write(tmp_path, content())
    (tmp_path / "val2017").rmdir()
    path = str(tmp_path / "annotations.json")
    images = str(tmp_path if section == "LVIS" else tmp_path / "val2017")
    load = lvis.load_lvis_v1 if section == "LVIS" else coco_ovd.load_coco_ovd
    options = {} if section == "LVIS" else {"base_only": False}
    with pytest.raises(OVDError, match=f"image folder .*val2017 is missing.*{section}"):
        load(path, images, **options)


JUNK = (None, -1, 1e400, "", "x", [], [None], [[1.0]], {}, {"id": 1}, True)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_one_wrong_entry_is_harmless_or_a_plain_error(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    load, content, _ = data.draw(st.sampled_from(LOADERS))
    content = content()
    part = data.draw(st.sampled_from(["categories", "images", "annotations"]))
    entry = data.draw(st.sampled_from(content[part]))
    key = data.draw(st.sampled_from(sorted(entry)))
    if data.draw(st.booleans()):
        del entry[key]
    else:
        entry[key] = data.draw(st.sampled_from(JUNK))
    try:
        outcome = load(folder, content)
    except OVDError as error:
        outcome = re.search(r"annotations\.json|image folder", str(error))
    assert outcome
