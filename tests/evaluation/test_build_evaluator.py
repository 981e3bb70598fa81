"""The evaluator of a data set follows its metadata and the config."""

import importlib.util
import json

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from ovd_d2.config import add_ovd_config
from ovd_d2.errors import OVDError
from ovd_d2.evaluation import (
    COCOOpenVocabEvaluator,
    LVISOpenVocabEvaluator,
    PhraseGroundingEvaluator,
    ReferringExpressionEvaluator,
    build_evaluator,
    check_evaluator,
)
from ovd_d2.evaluation.coco_open_vocab import CheckedCOCOEvaluator


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    return cfg


@pytest.fixture
def dataset(tmp_path):
    name = "test_build_evaluator"
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    box = {"bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "height": 9, "width": 9, "file_name": "1.jpg", **lists}],
        "categories": [{"id": 1, "name": "ant", "frequency": "r"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **box}],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    DatasetCatalog.register(name, list)

    def build(evaluator_type):
        MetadataCatalog.pop(name, None)
        MetadataCatalog.get(name).set(
            json_file=str(path),
            thing_classes=["ant"],
            is_novel=[True],
            thing_dataset_id_to_contiguous_id={1: 0},
            **({"evaluator_type": evaluator_type} if evaluator_type else {}),
        )
        return name

    yield build
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_the_type_decides(cfg, dataset):
    assert type(build_evaluator(cfg, dataset("lvis"))) is LVISOpenVocabEvaluator
    assert type(build_evaluator(cfg, dataset("coco_ovd"))) is COCOOpenVocabEvaluator
    name = dataset("coco")
    assert type(build_evaluator(cfg, name)) is COCOOpenVocabEvaluator  # its metadata say is_novel
    del MetadataCatalog.get(name).is_novel
    stock = build_evaluator(cfg, name)
    assert isinstance(stock, COCOEvaluator) and not isinstance(stock, COCOOpenVocabEvaluator)


@pytest.mark.parametrize(
    "kind, evaluator",
    [("phrase_grounding", PhraseGroundingEvaluator), ("refexp", ReferringExpressionEvaluator)],
)
def test_grounding_data_sets(cfg, dataset, monkeypatch, kind, evaluator):
    name = dataset(kind)
    with pytest.raises(OVDError, match="asks for phrases of captions, which .* does not read"):
        check_evaluator(cfg, name)
    cfg.MODEL.META_ARCHITECTURE = "GLIP"
    cfg.DATASETS.NOVEL_NAMES = ["ant"]  # a data set without classes takes no notice
    record = {"image_id": 1, "sentence_id": 0, "phrases": [{"boxes": [[0, 0, 9, 9]]}]}
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: [record])
    check_evaluator(cfg, name)
    assert type(build_evaluator(cfg, name)) is evaluator
    cfg.TEST.DISTRACTORS = "imagenet21k:10"
    with pytest.raises(OVDError, match=f"TEST.DISTRACTORS is for detectors, .* is for {kind}"):
        check_evaluator(cfg, name)


def test_novel_classes_of_a_coco_data_set(cfg, dataset):
    name = dataset("coco")
    metadata = MetadataCatalog.get(name)
    del metadata.is_novel
    for key, listed, novel in (("base_classes", ["ant"], False), ("novel_classes", ["ant"], True)):
        metadata.set(**{key: listed})
        assert build_evaluator(cfg, name)._is_novel.tolist() == [novel]
        delattr(metadata, key)
    metadata.novel_classes = ["bee"]
    with pytest.raises(
        OVDError, match="'bee' in novel_classes, which is none of its thing_classes"
    ):
        build_evaluator(cfg, name)
    del metadata.novel_classes
    cfg.DATASETS.NOVEL_NAMES = ["ant"]
    assert build_evaluator(cfg, name)._is_novel.tolist() == [True]
    assert build_evaluator(cfg, dataset("lvis"))._groups["novel"].tolist() == [True]
    cfg.DATASETS.NOVEL_NAMES = ["bee"]
    assert build_evaluator(cfg, dataset("lvis"))._groups["novel"].tolist() == [False]


def test_the_config_reaches_the_lvis_evaluator(cfg, dataset):
    evaluator = build_evaluator(cfg, dataset("lvis"))
    assert (evaluator._backend, evaluator._fixed_ap) == ("hotcoco", False)
    assert evaluator._output_dir == f"{cfg.OUTPUT_DIR}/inference"
    cfg.TEST.LVIS_BACKEND = "lvis-api"
    cfg.TEST.FIXED_AP = True
    evaluator = build_evaluator(cfg, dataset("lvis"), "elsewhere")
    assert (evaluator._backend, evaluator._fixed_ap) == ("lvis-api", True)
    assert evaluator._output_dir == "elsewhere"
    cfg.TEST.LVIS_BACKEND = "no such"
    with pytest.raises(OVDError, match="TEST.LVIS_BACKEND is 'no such'"):
        build_evaluator(cfg, dataset("lvis"))


def test_unknown_data_sets_and_types(cfg, dataset):
    with pytest.raises(OVDError, match="'lvis_v9', which is not registered"):
        build_evaluator(cfg, "lvis_v9")
    for unknown in ("no_such_type", None):
        with pytest.raises(OVDError, match=f"evaluator_type {unknown!r}"):
            build_evaluator(cfg, dataset(unknown))


@pytest.mark.parametrize(
    "kind, needed, expected",
    [
        ("sem_seg", None, ["OpenVocabSemSegEvaluator"]),
        ("coco_panoptic_seg", "panopticapi",
         ["OpenVocabSemSegEvaluator", "CheckedCOCOEvaluator", "COCOPanopticEvaluator"]),
        ("cityscapes_instance", "cityscapesscripts", ["CityscapesInstanceEvaluator"]),
        ("cityscapes_panoptic_seg", "panopticapi", ["COCOPanopticEvaluator",
         "CityscapesSemSegEvaluator", "CityscapesInstanceEvaluator"]),
    ],
)  # fmt: skip
def test_what_detectron2_s_train_net_evaluates(cfg, dataset, monkeypatch, kind, needed, expected):
    """The packages that two of them import only when they evaluate must be there beforehand."""
    name = dataset(kind)
    MetadataCatalog.get(name).set(
        stuff_classes=["sky"], ignore_label=255, stuff_dataset_id_to_contiguous_id={1: 0}
    )
    find = importlib.util.find_spec
    if needed:
        monkeypatch.setattr(importlib.util, "find_spec", lambda m: None if m == needed else find(m))
        with pytest.raises(OVDError, match=f"needs {needed}: run `pip install"):
            check_evaluator(cfg, name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda m: True)
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: [])
    found = build_evaluator(cfg, name)
    parts = getattr(found, "_evaluators", [found])
    assert [type(part).__name__ for part in parts] == expected


def test_cityscapes_without_its_scripts(cfg, monkeypatch):
    name = "cityscapes_fine_sem_seg_val"
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: [])
    monkeypatch.setattr(importlib.util, "find_spec", lambda m: None)
    check_evaluator(cfg, name)
    assert type(build_evaluator(cfg, name)).__name__ == "OpenVocabSemSegEvaluator"
    monkeypatch.setattr(importlib.util, "find_spec", lambda m: True)
    assert type(build_evaluator(cfg, name)).__name__ == "CityscapesSemSegEvaluator"
    cfg.DATASETS.NOVEL_NAMES = ["rider"]
    evaluator = build_evaluator(cfg, name)
    assert type(evaluator).__name__ == "OpenVocabSemSegEvaluator"
    assert evaluator._is_novel.sum() == 1
    cfg.TEST.DISTRACTORS = "imagenet21k:10"
    with pytest.raises(OVDError, match="TEST.DISTRACTORS is for detectors"):
        check_evaluator(cfg, name)


def test_keypoint_sigmas_are_passed_on(cfg, dataset):
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.1, 0.2]
    name = dataset("coco")
    assert type(build_evaluator(cfg, name)) is COCOOpenVocabEvaluator
    assert build_evaluator(cfg, name)._kpt_oks_sigmas == [0.1, 0.2]
    del MetadataCatalog.get(name).is_novel
    assert type(build_evaluator(cfg, name)) is CheckedCOCOEvaluator
    assert build_evaluator(cfg, name)._kpt_oks_sigmas == [0.1, 0.2]


def test_fixed_ap_warns_of_a_cap_that_cuts_it_short(cfg, dataset, caplog):
    """One image and one class: 10,000 detections are meant, the RPN's 1000 proposals can be."""
    name = dataset("lvis")
    cfg.TEST.DETECTIONS_PER_IMAGE = 999
    build_evaluator(cfg, name)
    assert "APfixed" not in caplog.text
    cfg.TEST.FIXED_AP = True
    build_evaluator(cfg, name)
    assert "APfixed will be too low; set TEST.DETECTIONS_PER_IMAGE to 1000 or more" in caplog.text
    caplog.clear()
    for enough in (1000, -1):
        cfg.TEST.DETECTIONS_PER_IMAGE = enough
        build_evaluator(cfg, name)
    assert "APfixed" not in caplog.text
