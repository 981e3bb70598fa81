"""``ovd speed mavl`` on a small MAVL: both ways find the same, and the usual one reads the image
again for each question."""

import json
import sys
from pathlib import Path

import pytest
import torch
import warm_processes

from ovd_d2.benchmarks.speed import mavl_questions as bench
from ovd_d2.config_file import load_config
from ovd_d2.errors import OVDError
from ovd_d2.pseudo_labelling import OBJECT_QUERIES

CONFIG = Path(__file__).parents[2] / "configs" / "mini" / "mavl.yaml"
OPTS = ["MODEL.TIMM.WEIGHTS", "", "MODEL.TIMM.NAME", "test_efficientnet",
        "MODEL.TIMM.FREEZE_STAGES", "1"]  # fmt: skip
SIZE = (64, 96)


@pytest.fixture
def cfg():
    return load_config(str(CONFIG), [*OPTS, "MODEL.DEVICE", "cpu"])


def test_both_ways_find_the_same(cfg):
    told = []
    found = bench.measure_questions(cfg, size=SIZE, repeats=2, progress=told.append)
    assert found.differing == 0 and found.boxes > 5
    assert 0 <= found.box_difference < 1e-2 and 0 <= found.score_difference < 1e-5
    assert (len(found.seconds["ours"]), len(found.seconds["usual"])) == (2, 3)
    assert found.ratio > 1 and found.questions == OBJECT_QUERIES
    assert told[-1] == "run 5 of 5: usual"
    found.seconds = {"ours": [1.0, 4.0], "usual": [2.0, 4.0, 8.0]}  # gets slower and slower
    assert found.ratio == (3 / 1 + 6 / 4) / 2 and found.median("ours") == 2.5


def test_a_difference_is_seen(cfg, monkeypatch):
    usual = bench.ask_usually
    monkeypatch.setattr(bench, "ask_usually", lambda m, i, q: usual(m, i.flip(2), q))
    found = bench.measure_questions(cfg, size=SIZE, repeats=1)
    assert found.differing > 3 and found.box_difference > 0.1
    monkeypatch.setattr(bench, "ask_usually", lambda m, i, q: usual(m, i, q[::-1]))
    found = bench.measure_questions(cfg, size=SIZE, questions=("a cat", "a dog"), repeats=1)
    assert found.score_difference > 1e-4  # what is asked matters


def test_what_runs_how_often(cfg):
    model = bench.mavl_of_random_weights(cfg)
    calls = dict.fromkeys(("backbone", "transformer", "text_backbone", "fusion"), 0)

    def count(name):
        def hook(*_):
            calls[name] += 1

        getattr(model, name).register_forward_pre_hook(hook)

    for name in calls:
        count(name)
    image = torch.zeros(3, *SIZE)
    for _ in range(2):  # texts are read anew
        calls.update(dict.fromkeys(calls, 0))
        bench.ask_once(model, image, OBJECT_QUERIES)
        assert list(calls.values()) == [1, 1, 1, 1]
    calls.update(dict.fromkeys(calls, 0))
    bench.ask_usually(model, image, OBJECT_QUERIES)
    assert list(calls.values()) == [4, 4, 4, 4]


def test_roberta_s_architecture_needs_no_hub(cfg, monkeypatch):
    cfg.defrost()
    cfg.MODEL.TEXT_BACKBONE.MODEL = bench.ROBERTA

    class AskedError(Exception):
        pass

    def model_of(cfg):
        raise AskedError(cfg.MODEL.TEXT_BACKBONE.NAME)

    monkeypatch.setattr(bench, "random_model", model_of)
    with pytest.raises(AskedError, match="RandomRobertaBase"):
        bench.mavl_of_random_weights(cfg)
    tokens = bench.WordTokens(50265)(["all objects", "all visible entities and objects"])
    assert tokens.ids.shape == (2, 7) and tokens.mask.sum(dim=1).tolist() == [4, 7]
    assert tokens.ids[0, 1] == tokens.ids[1, 1] and tokens.ids[0, 2] == tokens.ids[1, 5]
    assert tokens.ids.max() < 50265


def test_bad_input(cfg):
    with pytest.raises(OVDError, match="have to be 1 or more"):
        bench.measure_questions(cfg, size=SIZE, repeats=0)
    cfg.defrost()
    cfg.MODEL.MAVL.LANGUAGE = False
    with pytest.raises(OVDError, match="give the config of a MAVL with language"):
        bench.measure_questions(cfg, size=SIZE)


@pytest.mark.slow
def test_the_command():
    words = ["speed", "mavl", "--config-file", CONFIG, "--size", "64x96", "--repeats", "1",
             "--questions", "all objects, every cat", "--json", *OPTS]  # fmt: skip
    done = warm_processes.run(
        [sys.executable, "-m", "ovd_d2.cli.app", *words],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["questions"] == ["all objects", "every cat"] and facts["differing"] == 0
    assert facts["boxes"] > 0 and facts["ratio"] > 0 and facts["size"] == [64, 96]
