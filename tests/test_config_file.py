"""Whatever stands in a yaml or behind the options: a config, or one sentence as OVDError."""

import shutil
import string
from pathlib import Path

import pytest
import yaml
from detectron2 import model_zoo
from detectron2.config import CfgNode
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ovd_d2.config_file import load_config
from ovd_d2.errors import OVDError

FEW = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
KEYS = st.sampled_from(
    ["MODEL", "SOLVER", "DATASETS", "INPUT", "VERSION", "WEIGHTS", "BASE_LR", "OPEN_VOCAB", "STEPS",
     "VOCABULARY", "TRAIN", "ROI_HEADS", "NAME", "IN_FEATURES", "OUTPUT_DIR", "_BASE_", "SEED"]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=8)
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(KEYS, SCALARS), inner, max_size=4),
    ),
    max_leaves=8,
)


def config_or_sentence(*arguments):
    """The config, whose dump reads back as the same; or None if it was refused as it should be."""
    try:
        cfg = load_config(*arguments)
    except OVDError as error:
        sentence = str(error)
        assert sentence.endswith(".") and "\n" not in sentence and len(sentence) > 20
        return None
    assert isinstance(cfg, CfgNode) and isinstance(cfg.MODEL, CfgNode)
    return cfg


@FEW
@given(st.binary(max_size=60))
@example(b"")
@example(b"\xff\xfe")
@example(b"MODEL: &a [*a]")
@example(b"a: " + b"[" * 500)
@example(b"!!python/object/apply:os.system ['true']")
@example(b"_BASE_: .")
@example(b"_BASE_: [nothing.yaml, 3]")
@example(b"_BASE_: 'x\\0y'")
@example(b"MODEL: {WEIGHTS: 2001-01-01}")
@example(b"SOLVER: {BASE_LR: 1_0.0.0, STEPS: !!set {1}}")
def test_any_bytes(tmp_path, content):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    config_or_sentence(str(file))


@FEW
@given(st.text(string.printable, max_size=60))
def test_any_text(tmp_path, content):
    file = tmp_path / "config.yaml"
    file.write_text(content)
    config_or_sentence(str(file))


@FEW
@given(TREES)
@example({"SOLVER": None})
@example({"MODEL": {"OPEN_VOCAB": []}})
@example({"VERSION": "two"})
@example({1: {2: 3}})
def test_any_structure(tmp_path, tree):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    config_or_sentence(str(file))


@FEW
@given(st.lists(st.one_of(st.text(max_size=10), KEYS.map("MODEL.{}".format)), max_size=4))
@example(["SOLVER.BASE_LR", "(" * 5000])
@example(["SOLVER.BASE_LR", "9" * 5000])
@example(["SOLVER", "{}"])
@example(["", "1"])
@example(["MODEL.", "1"])
@example(["_BASE_", "x"])
@example(["SOLVER.BASE_LR.X", "1"])
def test_any_options(options):
    config_or_sentence("", options)


@pytest.mark.parametrize("name", ["", ".", "no\0thing", "x" * 5000, "\ud800.yaml"])
def test_any_file_name(name):
    assert (config_or_sentence(name) is None) == (name != "")


def test_aliases_that_multiply_are_refused_at_once(tmp_path):
    """Thirty lines that stand for 2 ** 30 nodes."""
    file = tmp_path / "config.yaml"
    lines = [f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}" for n in range(1, 31)]
    file.write_text("\n".join(["a0: &a0 {x: 1}", *lines]))
    with pytest.raises(OVDError, match="config.yaml.*aliases"):
        load_config(str(file))
    file.write_text("SOLVER: &s {BASE_LR: 0.1}")
    assert load_config(str(file)).SOLVER.BASE_LR == 0.1


def test_depth_is_not_called_a_circle(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("a: " + "[" * 500)
    with pytest.raises(OVDError, match="nested too deeply"):
        load_config(str(file))
    file.write_text("_BASE_: config.yaml")
    with pytest.raises(OVDError, match="circle"):
        load_config(str(file))


def test_python_tags_are_for_detectron2_s_own_files(tmp_path):
    """Its RetinaNets have them; a copy of one elsewhere is anybody's file."""
    zoo = Path(model_zoo.get_config_file("Base-RetinaNet.yaml"))
    retinanet = zoo.parent / "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
    wanted = load_config(str(retinanet)).MODEL.ANCHOR_GENERATOR
    assert len(wanted.SIZES) == 5 and len(wanted.SIZES[0]) == 3
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"_BASE_: {retinanet}")
    assert wanted == load_config(str(mine)).MODEL.ANCHOR_GENERATOR
    shutil.copy(zoo, tmp_path)
    mine.write_text(f"_BASE_: [{retinanet}, Base-RetinaNet.yaml]")
    for file in (mine, tmp_path / "Base-RetinaNet.yaml"):
        with pytest.raises(OVDError, match="Base-RetinaNet.yaml holds a yaml tag that could run"):
            load_config(str(file))
