"""The evaluator of a data set follows its metadata and the config."""

import json

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from ovd_d2.config import add_ovd_config
from ovd_d2.errors import OVDError
from ovd_d2.evaluation import COCOOpenVocabEvaluator, LVISOpenVocabEvaluator, build_evaluator


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
    for unknown in ("cityscapes_instance", None):
        with pytest.raises(OVDError, match=f"evaluator_type {unknown!r}"):
            build_evaluator(cfg, dataset(unknown))
