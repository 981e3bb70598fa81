"""The parts of a Detic checkpoint that our cascade takes. Keys and shapes are made up after the
public code: no released file was at hand."""

import pytest
import torch
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
        state[f"{predictor}cls_score.cls_bias"] = torch.full((1,), -4.6)
        state[f"{predictor}cls_score.zs_weight"] = classes.clone()
        state[f"{predictor}freq_weight"] = frequency
    for i in range(1, 5):
        state.update(layer(f"roi_heads.mask_head.mask_fcn{i}", 8, 16 if i == 1 else 8, 3, 3))
    state["roi_heads.mask_head.deconv.weight"] = torch.randn(8, 8, 2, 2)
    state["roi_heads.mask_head.deconv.bias"] = torch.randn(8)
    state.update(layer("roi_heads.mask_head.predictor", 1, 8, 1, 1))
    state["roi_heads.caption_head.weight"] = torch.randn(3)
    return state


def cascade(zoo_cfg):
    from detectron2.modeling import build_model

    return build_model(
        zoo_cfg(
            "cascade", 5, "MODEL.OPEN_VOCAB.BOX_MLP", True, "MODEL.OPEN_VOCAB.BACKGROUND", "zero",
            "MODEL.OPEN_VOCAB.USE_BIAS", True,
        )
    )  # fmt: skip


def test_the_whole_cascade_loads_and_nothing_of_ours_is_left_random(zoo_cfg):
    parts = from_detic(detic_state())
    model = cascade(zoo_cfg)
    missing, unexpected = model.load_state_dict(parts.weights, strict=False)
    assert unexpected == []
    assert [key for key in missing if key.startswith("roi_heads.")] == []


def test_logits_are_the_formula_of_the_public_classifier(zoo_cfg):
    """50 * unit(linear(x)) . zs_weight + cls_bias, zero background column included."""
    from ovd_d2.language import TextEmbeddings, Vocabulary
    from ovd_d2.modeling import set_vocabulary

    state = detic_state()
    parts = from_detic(state)
    model = cascade(zoo_cfg)
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
        torch.testing.assert_close(logits, e @ state[score + "zs_weight"] - 4.6)
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
        "backbone.bottom_up.*": 2, "backbone.*": 4, "proposal_generator.*": 3, "roi_heads.*": 1,
    }  # fmt: skip
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
    assert len(load_text_embeddings(table)) == CLASSES
    assert read_state_dict(str(out)).keys() == from_detic(detic_state()).weights.keys()
