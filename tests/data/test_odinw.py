"""ODinW: the table, files, few-shot images, prompts, and every wrong file in one sentence."""

import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from ovd_d2.data.datasets.odinw import (
    few_shot_images,
    load_odinw,
    odinw_prompts,
    odinw_suite,
    register_odinw_few_shot,
)
from ovd_d2.data.named_datasets import check_registered
from ovd_d2.errors import OVDError
from ovd_d2.evaluation.coco_open_vocab import CheckedCOCOEvaluator
from ovd_d2.language.vocabulary import Vocabulary

GOLDEN = Path(__file__).parents[1] / "golden" / "evaluators"
CONTENT = json.loads((GOLDEN / "fewshot_instances.json").read_text())
SAMPLING = json.loads((GOLDEN / "fewshot_sampling.json").read_text())
CONTENT_FIRST = min(CONTENT["images"], key=lambda image: image["id"])
CLASSES = tuple("abcdef")


# Few shots ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [name for name in SAMPLING if name != "valid_images"])
def test_golden_sampling(case):
    _, shots, seed = re.fullmatch(r"(\w+?)_(\d+)shot(?:_seed(\d+))?", case).groups()
    assert few_shot_images(CONTENT, int(shots), int(seed or 0)) == SAMPLING[case]


def test_valid_images_and_arguments():
    before = json.dumps(CONTENT)
    assert few_shot_images(CONTENT, 10**6) == SAMPLING["valid_images"]
    assert json.dumps(CONTENT) == before
    with pytest.raises(OVDError, match="shots is 0: give at least 1"):
        few_shot_images(CONTENT, 0)
    assert few_shot_images({**CONTENT, "annotations": []}, 3) == []


# The table ----------------------------------------------------------------------------------------


def test_suites():
    assert len(odinw_suite("odinw_35")) == 35
    assert len({d.folder for d in odinw_suite().values()}) == 35
    of_13 = odinw_suite("odinw_13")
    assert len(of_13) == len({d.paper_name for d in of_13.values()}) == 13
    assert sum(d.minival for d in odinw_suite().values()) == 11
    assert sum(len(d.classes) for d in odinw_suite().values()) == 314
    with pytest.raises(OVDError, match="suite is 'odinw_20': use one of odinw_13, odinw_35"):
        odinw_suite("odinw_20")


def test_files():
    suite = odinw_suite()
    end = "annotations_without_background.json"
    assert suite["pothole"].json_file("val") == f"odinw/pothole/valid/{end}"
    assert (
        suite["EgoHands_generic"].json_file("minival") == f"odinw/EgoHands/generic/mini_val/{end}"
    )
    assert suite["pistols_export"].json_file("test") == f"odinw/pistols/export/test_{end}"
    assert suite["PascalVOC"].json_file("test") == f"odinw/PascalVOC/valid/{end}"
    assert suite["EgoHands_generic"].registered("default") == "odinw_EgoHands_generic_minival"
    assert suite["pothole"].registered("default") == "odinw_pothole_val"
    with pytest.raises(OVDError, match="pothole has no split 'minival': use one of train, val"):
        suite["pothole"].registered("minival")


def test_prompts():
    def written(name, source):
        return {c: "".join(p.values()) for c, p in odinw_prompts(name, source).items()}

    mushrooms = "NorthAmericaMushrooms_North_American_Mushrooms.v1-416x416.coco"
    assert written("EgoHands_generic", "paper") == {"hand": "hand of a person"}
    assert written("Packages_Raw", "paper") == {"package": "there is a package on the porch"}
    assert odinw_prompts("pothole")["pothole"]["name"] == "holes"
    assert written(mushrooms, "repository")["CoW"] == "flat mushroom"
    assert (
        written("EgoHands_generic", "none") == {} == written("Raccoon_Raccoon.v2-raw.coco", "paper")
    )
    for source in ("paper", "repository"):
        of_source = {n: odinw_prompts(n, source) for n in odinw_suite()}
        assert sum(bool(p) for p in of_source.values()) == 6
        for name, prompts in of_source.items():
            assert set(prompts) <= set(odinw_suite()[name].classes)
            assert all(list(p) == ["prefix", "name", "suffix"] for p in prompts.values())
    for name in odinw_suite():  # the two sources differ by spaces alone
        paper, repository = written(name, "paper"), written(name, "repository")
        for class_name, text in paper.items():
            assert text.replace(" ", "") == repository[class_name].replace(" ", "")
    with pytest.raises(OVDError, match="source is 'mmdet': use one of paper, repository, none"):
        odinw_prompts("pothole", "mmdet")
    with pytest.raises(OVDError, match="name is 'potholes', which is no data set of ODinW"):
        odinw_prompts("potholes")


def test_registration():
    for dataset in odinw_suite().values():
        for split in dataset.splits:
            name = dataset.registered(split)
            metadata = MetadataCatalog.get(name)
            assert name in DatasetCatalog and metadata.evaluator_type == "coco"
            assert metadata.json_file.endswith(dataset.json_file(split))
            assert Vocabulary.from_metadata(name).names == tuple(dataset.classes)


# Files --------------------------------------------------------------------------------------------


def write(folder, content=CONTENT, name="annotations.json"):
    path = folder / name
    path.write_text(json.dumps(content))
    return str(path)


def test_records(tmp_path):
    records = load_odinw(write(tmp_path), CLASSES)
    assert len(records) == len(CONTENT["images"])
    assert records[0]["file_name"] == str(tmp_path / CONTENT_FIRST["file_name"])
    classes = {a["category_id"] for r in records for a in r["annotations"]}
    assert classes == set(range(6))
    few = load_odinw(write(tmp_path), CLASSES, shots=3)
    assert [r["image_id"] for r in few] == SAMPLING["grounding_3shot"]


def test_a_class_of_two_spaces_is_read_and_evaluated(tmp_path):
    content = json.loads(json.dumps(CONTENT))
    content["categories"][0]["name"] = "  "
    path, name = write(tmp_path, content), "test_odinw_blank_name"
    assert len(load_odinw(path, CLASSES)) == 60
    MetadataCatalog.get(name).set(
        json_file=path,
        thing_classes=list(CLASSES),
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(6)},
    )
    evaluator = CheckedCOCOEvaluator(name, distributed=False, use_fast_impl=False)
    MetadataCatalog.remove(name)
    evaluator.reset()
    image, one = CONTENT_FIRST, next(a for a in CONTENT["annotations"] if a["category_id"] == 1)
    x, y, width, height = one["bbox"]
    found = Instances((image["height"], image["width"]))
    found.pred_boxes = Boxes(torch.tensor([[x, y, x + width, y + height]]))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([0])
    evaluator.process([{"image_id": one["image_id"]}], [{"instances": found}])
    metrics = evaluator.evaluate()["bbox"]
    assert metrics["AP-a"] > 0 == metrics["AP-b"]


def test_wrong_files(tmp_path):
    with pytest.raises(OVDError, match="6 categories with ids 1 to 6, but this data set has 5"):
        load_odinw(write(tmp_path), CLASSES[:5])
    shifted = json.loads(json.dumps(CONTENT))
    for entry in (*shifted["categories"],):
        entry["id"] -= 1
    for entry in shifted["annotations"]:
        entry["category_id"] -= 1
    with pytest.raises(OVDError, match="ids 0 to 5, but this data set has 6, from 1 on"):
        load_odinw(write(tmp_path, shifted), CLASSES)
    with pytest.raises(OVDError, match="missing.json is missing.*section 'ODinW'"):
        load_odinw(str(tmp_path / "missing.json"), CLASSES)


def test_few_shot_data_sets_by_name(tmp_path, monkeypatch):
    name = "odinw_BCCD_BCCD.v3-raw.coco_train"
    few, published = f"{name}_3shot", f"{name}_3shot_seed30"
    metadata = MetadataCatalog.get(name)
    content = {**CONTENT, "categories": CONTENT["categories"][:3]}
    content["annotations"] = [a for a in CONTENT["annotations"] if a["category_id"] <= 3]
    one = content["annotations"][0]
    part = {**content, "annotations": [one]}
    part["images"] = [i for i in content["images"] if i["id"] == one["image_id"]]
    for key, value in (("json_file", write(tmp_path, content)), ("image_root", str(tmp_path))):
        monkeypatch.setitem(metadata.__dict__, key, value)
    write(tmp_path, part, "fewshot_train_shot3_seed30.json")
    try:
        check_registered("DATASETS.TRAIN", [few, published, few])
        drawn = [record["image_id"] for record in DatasetCatalog.get(few)]
        assert drawn == few_shot_images(content, 3)
        assert [r["image_id"] for r in DatasetCatalog.get(published)] == [one["image_id"]]
        assert MetadataCatalog.get(few).get("evaluator_type") is None
        assert MetadataCatalog.get(few).thing_classes == ["Platelets", "RBC", "WBC"]
    finally:
        for registered in (few, published):
            DatasetCatalog.remove(registered)
            MetadataCatalog.remove(registered)
    for wrong in ("odinw_no_such_train_3shot", "odinw_pothole_test_3shot", "odinw_pothole_train"):
        assert not register_odinw_few_shot(wrong)
    with pytest.raises(OVDError, match="'odinw_pothole_test_3shot', which is not registered"):
        check_registered("DATASETS.TRAIN", ["odinw_pothole_test_3shot"])
