"""GLIP's checkpoints: every key, both ways."""

import json
import sys
from pathlib import Path

import pytest
import torch
import warm_processes
from detectron2.modeling import build_model

from ovd_d2.checkpoint import from_glip, load_weights, to_glip
from ovd_d2.config_file import load_config
from ovd_d2.errors import OVDError
from ovd_d2.jobs.convert_checkpoint import convert_glip, convert_to_glip

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "modeling"))

from glip_names import public_to_ours  # noqa: E402
from small_glip import sample, small_glip  # noqa: E402

RELEASED = json.loads((TESTS / "golden/glip/state_dict_keys.json").read_text())
MODELS = {"glip_T_A": "glip_t_a", "glip_T": "glip_t", "glip_L": "glip_l"}
COMPUTED = {"language_backbone.body.model.embeddings.position_ids"} | {
    f"rpn.anchor_generator.cell_anchors.{level}" for level in range(5)
}


def released(name):
    """Names and shapes of a model of theirs, without numbers."""
    shapes = RELEASED[name]["keys"]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize("name", MODELS)
def test_every_key_of_the_released_models_goes_there_and_back(name):
    theirs = released(name)
    found = from_glip({f"module.{key}": value for key, value in theirs.items()})
    unused = {"rpn.head.cls_logits.weight", "rpn.head.cls_logits.bias"}
    assert set(found.left_out) == COMPUTED | unused
    back = to_glip(found.weights)
    assert set(theirs) - set(back) == COMPUTED and set(back) <= set(theirs)
    assert all(back[key].shape == theirs[key].shape for key in back)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_yamls_build_the_released_models(name):
    found = from_glip(released(name))
    yaml = str(TESTS.parent / f"configs/glip/{MODELS[name]}.yaml")
    cfg = load_config(yaml, ["MODEL.OPEN_VOCAB.VOCABULARY", "later", "MODEL.DEVICE", "cpu"])
    keys = cfg.MODEL.GLIP
    assert (found.num_blocks, found.fusion) == (keys.NUM_BLOCKS, keys.FUSION)
    assert tuple(cfg.MODEL.SWIN.DEPTHS) == found.swin_depths
    model = build_model(cfg)
    ours = {key: value.shape for key, value in model.state_dict().items()}
    assert ours == {key: value.shape for key, value in found.weights.items()}
    count = sum(p.numel() for p in model.parameters())
    slots = 80 * 256 + 80  # of cls_logits
    assert count + slots == RELEASED[name]["n_params"]


@pytest.mark.parametrize("fusion", [True, False])
def test_a_model_there_and_back_detects_the_same(monkeypatch, tmp_path, fusion):
    model = small_glip(monkeypatch, FUSION=fusion, COARSE_OFFSETS="buffer")
    ours, theirs, again = (tmp_path / f"{name}.pth" for name in ("ours", "theirs", "again"))
    torch.save({"model": model.state_dict()}, ours)
    convert_to_glip(ours, theirs)
    done = convert_glip(theirs, again)
    assert done.entries == len(model.state_dict())
    assert any(f"NUM_BLOCKS 2, FUSION {fusion}" in fact for fact in done.facts)
    state = torch.load(again, weights_only=True)
    state = state.get("model", state)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    other = small_glip(monkeypatch, seed=5, FUSION=fusion, COARSE_OFFSETS="buffer")
    load_weights(other, state, str(again)).check_whole()
    first, second = (m([sample()])[0]["instances"] for m in (model, other))
    assert torch.equal(first.scores, second.scores)


@pytest.mark.parametrize("fusion", [True, False])
def test_the_head_is_renamed_as_the_golden_numbers_of_its_parts_want_it(monkeypatch, fusion):
    model = small_glip(monkeypatch, FUSION=fusion)
    theirs = to_glip(model.state_dict())
    prefix = "rpn.head."
    head = {k.removeprefix(prefix): v for k, v in theirs.items() if k.startswith(prefix)}
    expected = public_to_ours(head)
    assert set(expected) == set(model.head.state_dict())
    for key, value in model.head.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_strange_keys_and_missing_ones_are_named():
    theirs = released("glip_T")
    with pytest.raises(OVDError, match=r"rpn\.head\.extra\.weight belongs to no part of GLIP"):
        from_glip({**theirs, "rpn.head.extra.weight": torch.zeros(1)})
    del theirs["rpn.head.dyhead_tower.4.attention.self.key.bias"]
    with pytest.raises(OVDError, match=r"tower\.4\.attention\.self\.key\.bias is missing \(1 "):
        from_glip(theirs)
    with pytest.raises(OVDError, match="no checkpoint of GLIP"):
        from_glip({"weight": torch.zeros(1)})


def test_optional_heads_are_left_out_by_name():
    extras = {key: torch.zeros(1) for key in RELEASED["optional_extra_keys"]["keys"]}
    found = from_glip({**released("glip_T"), **extras})
    assert set(extras) <= set(found.left_out)


@pytest.mark.slow
def test_the_command(monkeypatch, tmp_path):
    ovd = Path(sys.executable).with_name("ovd")

    def command(*words):
        return warm_processes.run(
            [ovd, "convert", "glip", *words], cwd=tmp_path, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip

    ours = small_glip(monkeypatch).state_dict()
    torch.save({"model": ours}, tmp_path / "ours.pth")
    done = command("ours.pth", "--reverse", "--out", "theirs.pth")
    assert done.returncode == 0 and "cls_logits" in done.stdout, done.stderr
    done = command("theirs.pth")
    assert done.returncode == 0, done.stderr
    assert f"theirs_converted.pth: {len(ours)} tensors" in done.stdout
    assert "NUM_BLOCKS 2, FUSION True, COARSE_OFFSETS buffer" in done.stdout
    for bad in ("ours.pth", "none.pth", "theirs_converted.pth"):
        done = command(bad, "--out", "new.pth")
        assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
        assert done.stderr.count("\n") == 1 and not (tmp_path / "new.pth").exists()
