"""The parts of a Detic checkpoint that our detectors take: of small ones with made-up shapes, and
of all published configs with the names and shapes that the public code builds."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from released_shapes import our_config
from torch.nn.functional import normalize

from ovd_d2.checkpoint import from_detic, read_state_dict
from ovd_d2.cli.app import main
from ovd_d2.errors import OVDError
from ovd_d2.language import load_text_embeddings

CLASSES, DIM, WIDTH = 7, 16, 32


def layer(name, *shape):
    return {f"{name}.weight": torch.randn(shape), f"{name}.bias": torch.randn(shape[0])}


def detic_state() -> dict[str, torch.Tensor]:
    """As small as the detectors of tests/modeling: FC width 32, D = 16, FPN of 16 channels."""
    state = {
        "backbone.bottom_up.base.conv1.weight": torch.randn(64, 3, 7, 7),
        "backbone.bottom_up.base.layer1.0.conv1.weight": torch.randn(64, 64, 1, 1),
        **layer("backbone.fpn_lateral3", 16, 8, 1, 1),
        **layer("backbone.top_block.p6", 16, 16, 3, 3),
        **layer("proposal_generator.centernet_head.agn_hm", 1, 16, 3, 3),
        "proposal_generator.centernet_head.scales.0.scale": torch.ones(1),
    }
    classes = torch.cat([normalize(torch.randn(DIM, CLASSES), dim=0), torch.zeros(DIM, 1)], dim=1)
    frequency = torch.tensor([0.0, 1, 4, 9, 16, 25, 10000]) ** 0.5
    for k in range(3):
        predictor = f"roi_heads.box_predictor.{k}."
        state.update(layer(f"roi_heads.box_head.{k}.fc1", WIDTH, 16 * 7 * 7))
        state.update(layer(f"roi_heads.box_head.{k}.fc2", WIDTH, WIDTH))
        state.update(layer(f"{predictor}cls_score.linear", DIM, WIDTH))
        state.update(layer(f"{predictor}bbox_pred.0", WIDTH, WIDTH))
        state.update(layer(f"{predictor}bbox_pred.2", 4, WIDTH))
        state[f"{predictor}cls_score.zs_weight"] = classes.clone()
        state[f"{predictor}freq_weight"] = frequency
    for i in range(1, 5):
        state.update(layer(f"roi_heads.mask_head.mask_fcn{i}", 8, 16 if i == 1 else 8, 3, 3))
    state["roi_heads.mask_head.deconv.weight"] = torch.randn(8, 8, 2, 2)
    state["roi_heads.mask_head.deconv.bias"] = torch.randn(8)
    state.update(layer("roi_heads.mask_head.predictor", 1, 8, 1, 1))
    state["roi_heads.caption_head.weight"] = torch.randn(3)
    return state


def cascade(zoo_cfg, *opts):
    return build_model(
        zoo_cfg(
            "cascade", 5, "MODEL.OPEN_VOCAB.BOX_MLP", True, "MODEL.OPEN_VOCAB.BACKGROUND", "zero",
            *opts,
        )
    )  # fmt: skip


def test_the_whole_cascade_loads_and_nothing_of_ours_is_left_random(zoo_cfg):
    parts = from_detic(detic_state())
    model = cascade(zoo_cfg)
    missing, unexpected = model.load_state_dict(parts.weights, strict=False)
    assert unexpected == []
    assert [key for key in missing if key.startswith("roi_heads.")] == []


def test_logits_are_the_formula_of_the_public_classifier(zoo_cfg):
    """50 * unit(linear(x)) . zs_weight, zero background column included. A model with a bias does
    not keep its -4.6: the checkpoint has none."""
    from ovd_d2.language import TextEmbeddings, Vocabulary
    from ovd_d2.modeling import set_vocabulary

    state = detic_state()
    parts = from_detic(state)
    model = cascade(zoo_cfg, "MODEL.OPEN_VOCAB.USE_BIAS", True)
    assert model.roi_heads.box_predictors[0].cls_score.bias.item() == pytest.approx(-4.6)
    for predictor in model.roi_heads.box_predictors:
        predictor.cls_score.logit_scale = 50.0
    model.load_state_dict(parts.weights, strict=False)
    names = tuple(f"thing {k}" for k in range(CLASSES))
    rows = TextEmbeddings(parts.class_embeddings, names, "")
    set_vocabulary(model, Vocabulary(names), rows)
    x = torch.randn(5, WIDTH)
    for k, predictor in enumerate(model.roi_heads.box_predictors):
        own = f"roi_heads.box_predictor.{k}."
        score = own + "cls_score."
        e = x @ state[score + "linear.weight"].T + state[score + "linear.bias"]
        e = 50 * e / e.norm(dim=1, keepdim=True)
        logits, deltas = predictor(x)
        torch.testing.assert_close(logits, e @ state[score + "zs_weight"])
        hidden = (x @ state[own + "bbox_pred.0.weight"].T + state[own + "bbox_pred.0.bias"]).relu()
        wanted = hidden @ state[own + "bbox_pred.2.weight"].T + state[own + "bbox_pred.2.bias"]
        torch.testing.assert_close(deltas, wanted)


def test_every_key_is_converted_or_named():
    state = detic_state()
    parts = from_detic(state)
    classes_and_counts = 6
    left_out = sum(count for _, count, _ in parts.left_out)
    assert len(parts.weights) + left_out + classes_and_counts == len(state)
    assert {prefix: count for prefix, count, _ in parts.left_out} == {
        "backbone.bottom_up.base.*": 2,
        "backbone.*": 4,
        "proposal_generator.*": 3,
        "roi_heads.*": 1,
    }
    assert parts.image_counts.tolist() == [0, 1, 4, 9, 16, 25, 10000]


DAMAGES = {
    "no cascade of three stages": lambda s: s.pop("roi_heads.box_predictor.1.cls_score.zs_weight"),
    "last column of zeros": lambda s: s["roi_heads.box_predictor.0.cls_score.zs_weight"].add_(1),
    "different class embeddings": lambda s: s[
        "roi_heads.box_predictor.2.cls_score.zs_weight"
    ].neg_(),
    "1.cls_score.linear.weight is missing": lambda s: s.pop(
        "roi_heads.box_predictor.1.cls_score.linear.weight"
    ),
    "2.bbox_pred.2.bias is missing": lambda s: s.pop("roi_heads.box_predictor.2.bbox_pred.2.bias"),
    r"has shape \(28, 32\), not \(4, 32\)": lambda s: s.update(
        {"roi_heads.box_predictor.0.bbox_pred.2.weight": torch.zeros(28, WIDTH)}
    ),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damage_is_named(message):
    state = detic_state()
    DAMAGES[message](state)
    with pytest.raises(OVDError, match=message):
        from_detic(state)


def test_command(tmp_path, capsys):
    source, out, table = (tmp_path / n for n in ("detic.pth", "ours.pth", "e.safetensors"))
    torch.save({"model": detic_state()}, source)
    words = ["convert", "detic", source, "--out", out, "--embeddings", table]
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "left out proposal_generator.* (3 tensors): CenterNet" in printed
    assert "NAME OpenVocabCascadeROIHeads" in printed
    assert f"MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS {table}" in printed
    assert "USE_BIAS False, MULT_PROPOSAL_SCORE True" in printed
    assert len(load_text_embeddings(table)) == CLASSES
    assert read_state_dict(str(out)).keys() == from_detic(detic_state()).weights.keys()


def test_a_bias_is_converted_where_there_is_one(zoo_cfg):
    """No published config sets it, others may."""
    state = detic_state()
    for k in range(3):
        state[f"roi_heads.box_predictor.{k}.cls_score.cls_bias"] = torch.full((1,), -2.0)
    parts = from_detic(state)
    assert parts.has_bias and not from_detic(detic_state()).has_bias
    model = cascade(zoo_cfg, "MODEL.OPEN_VOCAB.USE_BIAS", True)
    model.load_state_dict(parts.weights, strict=False)
    assert [p.cls_score.bias.item() for p in model.roi_heads.box_predictors] == [-2.0] * 3


GOLDEN = Path(__file__).parents[1] / "golden" / "detic" / "state_dict_shapes.json"
SHAPES = json.loads(GOLDEN.read_text())
CLOSED_SET = [
    n for n in SHAPES["configs"] if "DeformDETR" in n or n == "Base-C2_L_R5021k_640b64_4x"
]
WITH_TEXT = [name for name in SHAPES["configs"] if name not in CLOSED_SET]


def published(name: str, with_batch_counts: bool = True) -> dict[str, torch.Tensor]:
    """A state dict with the published names and shapes; tensors without memory but for the class
    embeddings and frequencies.

    Args:
        name: of a config.
        with_batch_counts: whether batch norms save ``num_batches_tracked`` (by version).
    """
    shapes = {k: s for part in SHAPES["configs"][name] for k, s in SHAPES["parts"][part].items()}
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    for key, shape in shapes.items():
        if key.endswith("zs_weight"):
            state[key] = classes_of(tuple(shape))
        if key.endswith("freq_weight"):
            state[key] = torch.arange(shape[0]).float() ** 0.5
        if key.endswith("num_batches_tracked") and not with_batch_counts:
            del state[key]
    return state


@cache
def classes_of(shape: tuple[int, int]) -> torch.Tensor:
    rows = normalize(torch.randn(shape, generator=torch.Generator().manual_seed(0)), dim=0)
    rows[:, -1] = 0
    return rows


@pytest.mark.parametrize("name", WITH_TEXT)
def test_every_published_config_with_text_is_converted(name):
    state = published(name)
    parts = from_detic(state)
    assert not parts.has_bias
    num_classes = 80 if "OVCOCO" in name else 22047 if "I21k" in name else 1203
    assert parts.class_embeddings.shape == (num_classes, 512)
    assert (parts.image_counts is None) == (num_classes == 22047)
    left_out = {prefix: count for prefix, count, _ in parts.left_out}
    tables = sum(key.endswith(("zs_weight", "freq_weight")) for key in state)
    assert len(parts.weights) + sum(left_out.values()) + tables == len(state)
    has_captions = "caption" in name or "CCcapimg" in name
    assert left_out.pop("text_encoder.*", 0) == (149 if has_captions else 0)
    assert not any("unknown" in why for _, _, why in parts.left_out)
    if "OVCOCO" in name or "ViLD" in name:
        whole = "OpenVocabRes5ROIHeads" if "OVCOCO" in name else "OpenVocabROIHeads"
        assert parts.heads == whole and left_out == {}
        return
    assert parts.heads == "OpenVocabCascadeROIHeads"
    assert left_out.pop("proposal_generator.*") == 25 and left_out.pop("backbone.*") == 16
    backbones = {
        "SwinB": {"backbone.bottom_up.*": 355},
        "CXT21k": {"backbone.bottom_up.base.stem_*": 4, "backbone.bottom_up.base.stages_*": 174},
        "R18": {"backbone.bottom_up.base.*": 120},
        "R5021k": {"backbone.bottom_up.base.*": 318, "backbone.bottom_up.base.fc.*": 2},
    }
    assert left_out == next(found for key, found in backbones.items() if key in name)
    assert len(parts.weights) == 42


@pytest.mark.parametrize("name", CLOSED_SET)
def test_published_configs_without_text_are_refused_as_what_they_are(name):
    kind = "Deformable DETR" if "DETR" in name else "CenterNet2 of Detic's without text"
    with pytest.raises(OVDError, match=kind) as caught:
        from_detic(published(name))
    assert "\n" not in str(caught.value)


def test_files_without_batch_counts_are_converted_too():
    name = "BoxSup-C2_Lbase_CLIP_R5021k_640b64_4x"
    state = published(name, with_batch_counts=False)
    assert len(state) == 356
    assert from_detic(state).weights.keys() == from_detic(published(name)).weights.keys()


WHOLE = {
    "Detic_OVCOCO_CLIP_R50_1x_max-size": "rkd/coco_r50_c4_base.yaml",
    "Detic_OVCOCO_CLIP_R50_1x_caption": "rkd/coco_r50_c4_base.yaml",
    "BoxSup_ViLD_200e.py": "vild/lvis_r50_fpn_boxsup_detic.yaml",
}


@pytest.mark.parametrize("name", WHOLE)
def test_our_recipes_have_exactly_the_converted_keys_and_shapes(name, tmp_path):
    ours = build_model(our_config(WHOLE[name], tmp_path)).state_dict()
    found = {k: v.shape for k, v in ours.items() if not k.endswith("encoder_id_bytes")}
    assert found == {k: v.shape for k, v in from_detic(published(name)).weights.items()}
