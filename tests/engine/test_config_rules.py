"""Values of keys: bad ones are one sentence before anything is built, all published ones pass."""

from pathlib import Path

import pytest
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_detector import tiny_config

import ovd_d2
from ovd_d2.engine.config_rules import RULES, check_values
from ovd_d2.engine.setup import check_config
from ovd_d2.engine.trainer import OpenVocabTrainer
from ovd_d2.errors import OVDError

ROOT = Path(ovd_d2.__file__).parents[1]
ZOO = Path(model_zoo.__file__).parent / "configs"


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def defaults():
    cfg = get_cfg()
    ovd_d2.add_ovd_config(cfg)
    return cfg


def put(cfg, key, value):
    *path, last = key.split(".")
    for word in path:
        cfg = cfg[word]
    cfg[last] = value


# Numbers and lists of Detectron2 that need no rule: labels, places and names that others check.
FREE = {"VERSION", "GLOBAL.HACK", "TEST.EXPECTED_RESULTS", "DATASETS.TRAIN", "DATASETS.TEST",
        "DATASETS.PROPOSAL_FILES_TRAIN", "DATASETS.PROPOSAL_FILES_TEST"}  # fmt: skip


def test_every_number_and_list_of_detectron2_has_a_rule():
    numbers = {
        key for key, value in leaves(get_cfg())
        if isinstance(value, int | float | list | tuple) and not isinstance(value, bool)
    }  # fmt: skip
    assert numbers - RULES.keys() - FREE == set()


def test_every_rule_has_a_key():
    assert RULES.keys() - {key for key, _ in leaves(defaults())} == set()


def zoo_files():
    return sorted(ZOO.rglob("*.yaml")) + sorted((ROOT / "configs").rglob("*.yaml"))


def test_the_defaults_and_every_published_config_pass():
    check_values(defaults())
    assert len(zoo_files()) > 100
    for path in zoo_files():
        cfg = defaults()
        cfg.merge_from_file(str(path), allow_unsafe=ZOO in path.parents)
        check_values(cfg)


BAD = [
    ("MODEL.FPN.OUT_CHANNELS", -3, "at least 1"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", [], "a list that is not empty"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", [[]], "a list that is not empty"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", [[-32]], "above 0"),
    ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [["a"]], "above 0"),
    ("MODEL.RPN.IN_FEATURES", [], "a list that is not empty"),
    ("MODEL.RPN.IN_FEATURES", [3], "names"),
    ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "Nope", "'ROIAlignV2' or"),
    ("MODEL.ROI_BOX_HEAD.NUM_FC", -1, "0 or more"),
    ("MODEL.ROI_BOX_HEAD.FC_DIM", 0, "at least 1"),
    ("MODEL.ROI_HEADS.NUM_CLASSES", 0, "at least 1"),
    ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.5, "between 0 and 1"),
    ("MODEL.PIXEL_STD", [0.0, 1.0, 1.0], "above 0"),
    ("MODEL.PIXEL_MEAN", [float("nan"), 1.0, 1.0], "a finite number"),
    ("MODEL.RESNETS.DEPTH", 51, "18, 34, 50, 101 or 152"),
    ("MODEL.RESNETS.NORM", "batchnorm", "'BN'"),
    ("INPUT.MIN_SIZE_TEST", -1, "0 or more"),
    ("INPUT.MIN_SIZE_TRAIN", (), "a list that is not empty"),
    ("INPUT.MIN_SIZE_TRAIN", ("a",), "0 or more"),
    ("INPUT.MAX_SIZE_TEST", 0, "at least 1"),
    ("INPUT.FORMAT", "BRG", "'BGR' or 'RGB'"),
    ("INPUT.PAIRS.IMAGE_SIZE", -1, "0 or more"),
    ("INPUT.PAIRS.RESIZE", "pad", "'' or 'crop' or 'squash'"),
    ("INPUT.PAIRS.WITHOUT_NOUN_PHRASE", "drop", "'keep' or 'skip' or 'refuse'"),
    ("INPUT.PAIRS.DAMAGED_SHARDS", "ignore", "'refuse' or 'skip'"),
    ("SOLVER.BASE_LR", -1.0, "above 0"),
    ("SOLVER.BASE_LR", float("inf"), "above 0"),
    ("SOLVER.MOMENTUM", 1.0, "below 1"),
    ("SOLVER.CHECKPOINT_PERIOD", 0, "at least 1"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "nrom", "'value' or 'norm' or 'full_model'"),
    ("SOLVER.LR_SCHEDULER_NAME", "Cosine", "'WarmupCosineLR'"),
    ("SOLVER.STEPS", (-5,), "empty or a list"),
    ("SOLVER.WEIGHT_DECAY_BIAS", -1.0, "or None"),
    ("DATALOADER.NUM_WORKERS", -1, "0 or more"),
    ("TEST.LVIS_BACKEND", "fast", "'hotcoco' or 'lvis-api'"),
    ("TEST.DISTRACTORS", "imagenet21k:-5", "imagenet21k:N"),
    ("TEST.DETECTIONS_PER_IMAGE", 0, "-1 for all"),
    ("SEED", 1 << 40, "below 2147483648"),
    ("OUTPUT_DIR", "", "a folder"),
    ("MODEL.OPEN_VOCAB.LOGIT_SCALE", 0.0, "above 0"),
]  # fmt: skip


@pytest.mark.parametrize("key, value, wanted", BAD, ids=lambda v: str(v)[:40])
def test_bad_values_are_one_sentence(key, value, wanted):
    cfg = defaults()
    put(cfg, key, value)
    with pytest.raises(OVDError) as caught:
        check_values(cfg)
    message = str(caught.value)
    assert message.startswith(key) and wanted in message and "\n" not in message


TOGETHER = [
    (["MODEL.PIXEL_MEAN", [1.0]], "PIXEL_MEAN has 1 and PIXEL_STD 3 values"),
    (["INPUT.FORMAT", "L"], "has 1 channels"),
    (["MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"], "set NUM_FC to 2"),
    (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], "give (least, most)"),
    (["INPUT.SCALE_JITTER.MIN_SCALE", 3.0], "above MAX_SCALE 2"),
    (["MODEL.KEYPOINT_ON", True, "TEST.KEYPOINT_OKS_SIGMAS", [0.1]], "NUM_KEYPOINTS is 17"),
    (["TEST.AUG.ENABLED", True, "MODEL.META_ARCHITECTURE", "RetinaNet"], "RetinaNet. Set TEST.AUG"),
    (["TEST.AUG.ENABLED", True, "MODEL.KEYPOINT_ON", True], "KEYPOINT_ON is True. Set TEST.AUG"),
]


@pytest.mark.parametrize("opts, wanted", TOGETHER, ids=lambda v: str(v)[:40])
def test_values_that_do_not_go_together(opts, wanted):
    cfg = defaults()
    cfg.merge_from_list(opts)
    with pytest.raises(OVDError) as caught:
        check_values(cfg)
    assert wanted in str(caught.value)


SCALARS = st.one_of(st.integers(-3, 3), st.floats(), st.text(max_size=3), st.none(), st.booleans())
LISTS = st.lists(st.one_of(SCALARS, st.lists(SCALARS, max_size=2)), max_size=3)
SHARED = defaults()
DEFAULTS = dict(leaves(SHARED))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_value_gives_a_traceback(data):
    """Of the type of the default, as yacs has it, with anything inside lists."""
    key = data.draw(st.sampled_from(sorted(RULES)))
    kind = type(DEFAULTS[key])
    value = data.draw(SCALARS.filter(lambda v: type(v) is kind) if kind not in (list, tuple)
                      else LISTS.map(kind))  # fmt: skip
    put(SHARED, key, value)
    message = ""
    try:
        check_values(SHARED)
    except OVDError as error:
        message = str(error)
    finally:
        put(SHARED, key, DEFAULTS[key])
    assert "\n" not in message and (not message or key.split(".")[-1] in message)


def test_an_output_dir_that_cannot_be_is_found_first(tmp_path):
    (tmp_path / "file").write_text("")
    for bad, reason in (
        (tmp_path / "file", "is no folder"),
        (tmp_path / "file/below", "is no folder"),
        (tmp_path / ("x" * 300), "File name too long"),
        (str(tmp_path / "a\0b"), "null"),
        ("/proc/here/output", "cannot be made"),
    ):
        cfg = defaults()
        cfg.OUTPUT_DIR = str(bad)
        with pytest.raises(OVDError, match="^OUTPUT_DIR .*cannot be made") as caught:
            check_values(cfg)
        assert reason in str(caught.value)
    cfg.OUTPUT_DIR = str(tmp_path / "new/and/deep")
    check_values(cfg)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


UNBUILDABLE = [
    (["MODEL.RPN.IN_FEATURES", ["p9"]], r"^MODEL\.RPN\.IN_FEATURES names 'p9'"),
    (["MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p9"]], r"^MODEL\.ROI_HEADS\.IN_FEATURES names 'p9'"),
    (["MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]]], r"DefaultAnchorGenerator fails with"),
    (["MODEL.BACKBONE.NAME", "build_my_backbone"], "No object named 'build_my_backbone'"),
    (["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.FPN.IN_FEATURES", ["res9"]],
     r"MODEL\.FPN\.IN_FEATURES names 'res9'"),
    (["MODEL.RPN.IOU_THRESHOLDS", [0.7, 0.3]], "RPN fails with AssertionError"),
    (["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [True] * 4, "MODEL.RESNETS.DEPTH", 18,
      "MODEL.BACKBONE.NAME", "build_resnet_backbone"], "build_resnet_backbone fails with Assert"),
]  # fmt: skip


@pytest.mark.parametrize("opts, named", UNBUILDABLE, ids=lambda v: str(v)[:50])
def test_what_only_building_finds_names_the_part(tmp_path, opts, named):
    cfg = tiny_config(tmp_path)
    cfg.merge_from_list(opts)
    with pytest.raises(OVDError, match=named) as caught:
        OpenVocabTrainer.build_model(cfg)
    assert "\n" not in str(caught.value)


def test_mistakes_in_a_user_s_own_part_keep_their_traceback(tmp_path):
    from detectron2.modeling import BACKBONE_REGISTRY

    def build_mistaken_backbone(cfg, input_shape):
        return None.body

    BACKBONE_REGISTRY._obj_map.pop("build_mistaken_backbone", None)
    BACKBONE_REGISTRY.register(build_mistaken_backbone)
    cfg = tiny_config(tmp_path, "MODEL.BACKBONE.NAME", "build_mistaken_backbone")
    with pytest.raises(AttributeError, match="body"):
        OpenVocabTrainer.build_model(cfg)


def test_a_data_set_without_evaluator_is_found_before_training(tmp_path):
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import DatasetEvaluators
    from tiny_detector import TEST, register, write_dataset

    write_dataset(tmp_path / "data", count=2)
    register(tmp_path / "data")
    MetadataCatalog.get(TEST).evaluator_type = "coco"  # set, so that the next line may change it
    MetadataCatalog.get(TEST).__dict__["evaluator_type"] = "their_own"
    cfg = tiny_config(tmp_path / "out")
    check_config(cfg)
    with pytest.raises(OVDError, match="'tiny_test' has evaluator_type 'their_own'"):
        OpenVocabTrainer(cfg)

    class Own(OpenVocabTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return DatasetEvaluators([])

    Own(cfg)
