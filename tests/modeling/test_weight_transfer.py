"""RKD's weight transfer: the public code's numbers, the equation, and the stage before."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_detectors import DIM, KINDS, make_batch, make_embeddings, make_target, make_vocabulary
from small_detectors import training_losses as losses_of

from ovd_d2.checkpoint.atomic_checkpointer import AtomicCheckpointer
from ovd_d2.engine.teacher_check import check_weight_transfer
from ovd_d2.errors import OVDError
from ovd_d2.modeling import set_vocabulary
from ovd_d2.modeling.classifiers import (
    EmbeddingClassifier,
    WeightTransferProjection,
    build_projection,
)
from ovd_d2.structures import Supervision

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "rkd" / "weight_transfer.npz")
NAMES = {
    "linear": "projection.frozen",
    "fc1": "projection.generate.0",
    "fc2": "projection.generate.2",
    "fc3": "projection.skip.0",
    "fc4": "projection.skip.2",
}
TRANSFER = ("MODEL.OPEN_VOCAB.PROJECTION", "weight_transfer")
RKD = (
    "MODEL.PROPOSAL_GENERATOR.NAME", "MixedSupervisionRPN",
    "MODEL.REGION_DISTILLATION.WEIGHT", 25.0, "MODEL.REGION_DISTILLATION.LOSS", "l1_mean",
    "MODEL.REGION_DISTILLATION.RELATION_WEIGHT", 13.0,
)  # fmt: skip


def golden_classifier(bias: bool = True) -> EmbeddingClassifier:
    classifier = EmbeddingClassifier(
        64, 32, logit_scale=50.0, background="zero", bias_init=-4.6 if bias else None,
        projection=WeightTransferProjection(64, 32),
    )  # fmt: skip
    state = {
        f"{ours}.{end}": torch.from_numpy(GOLDEN[f"param.{theirs}.{end}"])
        for theirs, ours in NAMES.items()
        for end in ("weight", "bias")
    }
    if bias:
        state["bias"] = torch.from_numpy(GOLDEN["param.cls_bias"])
    classifier.load_state_dict(state)
    classifier.set_class_embeddings(torch.from_numpy(GOLDEN["zs_text_embeddings"]))
    return classifier


def close(ours, expected, rtol=1e-5):
    atol = rtol * float(np.abs(expected).max())
    np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("bias", [True, False])
def test_logits_are_the_public_codes(bias):
    logits = golden_classifier(bias)(torch.from_numpy(GOLDEN["x"]))
    close(logits, GOLDEN["logits" if bias else "logits_nobias"])


def test_gradients_are_the_public_codes():
    classifier = golden_classifier()
    x = torch.from_numpy(GOLDEN["x"]).requires_grad_()
    loss = (classifier(x) * torch.from_numpy(GOLDEN["upstream"])).sum()
    np.testing.assert_allclose(loss.item(), GOLDEN["loss_sum_logits_x_upstream"], rtol=1e-5)
    loss.backward()
    close(x.grad, GOLDEN["grad_x"])
    parameters = dict(classifier.named_parameters())
    np.testing.assert_allclose(
        parameters.pop("bias").grad.norm(), GOLDEN["gradnorm.cls_bias"], rtol=1e-5
    )
    for theirs, ours in NAMES.items():
        for end in ("weight", "bias"):
            gradient = parameters.pop(f"{ours}.{end}").grad
            if theirs == "linear":
                assert GOLDEN[f"nograd.{theirs}.{end}"] == 1 and gradient is None
            else:
                expected = GOLDEN[f"gradnorm.{theirs}.{end}"]
                np.testing.assert_allclose(gradient.norm(), expected, rtol=1e-5)
    assert parameters == {}


def test_swapped_vocabulary_is_the_public_codes():
    classifier = golden_classifier()
    classifier.set_class_embeddings(torch.from_numpy(GOLDEN["alt_text_embeddings"]))
    close(classifier(torch.from_numpy(GOLDEN["x"]))[:, :-1], GOLDEN["logits_alt"])


def leaky(value):
    return value if value > 0 else 0.1 * value


def slow_transfer(projection, x):
    """Row by row of W_D and region by region: W_P = W2 rho(W1 W_D), x -> W_P x + skip(x)."""
    first, _, second = projection.generate
    in_skip, _, out_skip = projection.skip
    generated = []
    for row in projection.frozen.weight:  # (F,), one for each of the D dimensions
        hidden = torch.stack([leaky((w * row).sum() + b) for w, b in zip(first.weight, first.bias)])
        generated.append(
            torch.stack([(w * hidden).sum() + b for w, b in zip(second.weight, second.bias)])
        )
    out = []
    for one in x:
        hidden = torch.stack(
            [leaky((w * one).sum() + b) for w, b in zip(in_skip.weight, in_skip.bias)]
        )
        skip = [(w * hidden).sum() + b for w, b in zip(out_skip.weight, out_skip.bias)]
        out.append(torch.stack([(g * one).sum() + s for g, s in zip(generated, skip)]))
    return torch.stack(out) if out else (x[:, :1] * 0).expand(0, len(generated))


INPUTS = {
    "no region": torch.zeros(0, 6),
    "one region": torch.randn(1, 6),
    "equal rows": torch.randn(1, 6).repeat(4, 1),
    "many": torch.randn(7, 6) * 10,
    "zeros": torch.zeros(2, 6),
}


@pytest.mark.parametrize("case", INPUTS)
@pytest.mark.parametrize("dim", [1, 4])
def test_value_and_gradient_are_the_equation(case, dim):
    projection = WeightTransferProjection(6, dim, skip_hidden=5).double()
    x = INPUTS[case].double().requires_grad_()
    trained = [p for p in projection.parameters() if p.requires_grad]
    value, expected = projection(x), slow_transfer(projection, x)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(value)
    ours = torch.autograd.grad((value * weight).sum(), [x, *trained])
    slow = torch.autograd.grad((expected * weight).sum(), [x, *trained], allow_unused=True)
    for mine, other in zip(ours, slow):
        other = torch.zeros_like(mine) if other is None else other
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def test_the_teacher_sees_the_frozen_projection_with_its_bias():
    projection = WeightTransferProjection(6, 4)
    classifier = EmbeddingClassifier(6, 4, projection=projection)
    x = torch.randn(3, 6, requires_grad=True)
    plain = x @ projection.frozen.weight.T + projection.frozen.bias
    expected = plain / plain.norm(dim=1, keepdim=True)
    student = classifier.embed_for_teacher(x)
    torch.testing.assert_close(student, expected)
    student.abs().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in classifier.parameters())
    assert not torch.allclose(student, classifier.embed(x))


def test_the_teacher_may_see_the_generated_projection():
    projection = WeightTransferProjection(6, 4, teacher="generated")
    classifier = EmbeddingClassifier(6, 4, projection=projection)
    x = torch.randn(3, 6, requires_grad=True)
    plain = slow_transfer(projection, x)
    student = classifier.embed_for_teacher(x)
    torch.testing.assert_close(student, plain / plain.norm(dim=1, keepdim=True))
    torch.testing.assert_close(student, classifier.embed(x))
    student.abs().sum().backward()
    for layer in (*projection.generate[::2], *projection.skip[::2]):
        assert layer.weight.grad.abs().sum() > 0
    assert projection.frozen.weight.grad is None and x.grad.abs().sum() > 0


@pytest.mark.parametrize("teacher, reached", [("frozen", False), ("generated", True)])
def test_the_config_says_which_projection_the_teachers_losses_train(build, teacher, reached):
    words = (*TRANSFER, "MODEL.OPEN_VOCAB.TRANSFER_TEACHER", teacher, "MODEL.MASK_ON", False)
    model = build("fpn", 5, *RKD, *words)
    rows = make_target(
        [[9, 9, 60, 60], [5, 30, 70, 80], [40, 20, 90, 90]], [1, -1, -1],
        supervision=torch.tensor([Supervision.BOX] + 2 * [Supervision.TEACHER_REGION]),
        teacher_embedding=torch.randn(3, DIM),
    )  # fmt: skip
    losses = losses_of(model, make_batch([rows]))
    sum(loss for name, loss in losses.items() if "distill" in name).backward()
    [predictor] = model.roi_heads.box_predictors
    gradient = predictor.cls_score.projection.generate[0].weight.grad
    assert (gradient is not None and bool(gradient.abs().sum() > 0)) == reached


@pytest.mark.parametrize("kind", KINDS)
def test_the_stage_before_loads_into_the_frozen_projection(build, kind, tmp_path):
    """Through fvcore's checkpointer: nothing unexpected, and missing are the new layers alone."""
    before = build(kind, 5, *RKD)
    AtomicCheckpointer(before, str(tmp_path)).save("model_final")
    torch.manual_seed(5)
    model = build(kind, 5, *RKD, *TRANSFER)
    report = AtomicCheckpointer(model).load(str(tmp_path / "model_final.pth"))
    assert not report  # nothing beyond the model
    stages = zip(before.roi_heads.box_predictors, model.roi_heads.box_predictors)
    for old, new in stages:
        assert torch.equal(old.cls_score.projection.weight, new.cls_score.projection.frozen.weight)
        assert torch.equal(old.cls_score.projection.bias, new.cls_score.projection.frozen.bias)
    missing, unexpected = model.load_state_dict(before.state_dict(), strict=False)
    assert unexpected == []
    new_layers = (".projection.generate.", ".projection.skip.")
    assert missing and all(any(layer in key for layer in new_layers) for key in missing)


def test_the_checkpointer_warns_of_the_new_layers_alone(build, tmp_path, caplog):
    AtomicCheckpointer(build("fpn", 5, *RKD), str(tmp_path)).save("model_final")
    model = build("fpn", 5, *RKD, *TRANSFER)
    with caplog.at_level("WARNING"):
        AtomicCheckpointer(model).load(str(tmp_path / "model_final.pth"))
    text = caplog.text
    assert "generate" in text and "skip" in text
    assert "frozen" not in text and "not used by the model" not in text


def test_its_own_checkpoint_loads_too(build, tmp_path):
    first = build("fpn", 5, *RKD, *TRANSFER)
    AtomicCheckpointer(first, str(tmp_path)).save("model_final")
    torch.manual_seed(7)
    again = build("fpn", 5, *RKD, *TRANSFER)
    for parameter in again.parameters():
        torch.nn.init.zeros_(parameter)
    AtomicCheckpointer(again).load(str(tmp_path / "model_final.pth"))
    for (name, old), new in zip(first.state_dict().items(), again.state_dict().values()):
        assert torch.equal(old, new), name


def test_training_wants_a_distilled_projection(build):
    before, model = build("fpn", 5, *RKD), build("fpn", 5, *RKD, *TRANSFER)
    check_weight_transfer(before)  # none of its business
    with pytest.raises(OVDError, match="MODEL.WEIGHTS"):
        check_weight_transfer(model)
    model.load_state_dict(before.state_dict(), strict=False)
    check_weight_transfer(model)
    resumed = build("fpn", 5, *RKD, *TRANSFER)
    resumed.load_state_dict(model.state_dict())
    check_weight_transfer(resumed)


def test_the_frozen_projection_stays_and_the_rest_moves(build):
    model = build("fpn", 5, *RKD, *TRANSFER)
    classifier = model.roi_heads.box_predictor.cls_score
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(losses_of(model, make_batch([make_target([[9, 9, 60, 60]], [1])])).values()).backward()
    optimizer.step()
    for name, value in classifier.state_dict().items():
        if "frozen" in name or "encoder_id" in name:
            assert torch.equal(value, before[name]), name
        elif "weight" in name:
            assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_swap_between_calls(build, kind):
    model = build(kind, 5, *RKD, *TRANSFER, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    keys = model.state_dict().keys()
    for num_classes in (1, 23, 5):
        vocabulary = make_vocabulary(num_classes)
        set_vocabulary(model, vocabulary, make_embeddings(vocabulary))
        target = make_target([[9, 9, 60, 60]], [num_classes - 1])
        losses = losses_of(model, make_batch([target]))
        assert all(torch.isfinite(value) for value in losses.values())
        model.eval()
        with torch.no_grad():
            found = model(make_batch([target]))[0]["instances"]
        assert len(found) and int(found.pred_classes.max()) < num_classes
    assert model.state_dict().keys() == keys


def transferred(weight, bias, start="distilled"):
    """A projection that has loaded a Linear of the stage before."""
    projection = WeightTransferProjection(weight.shape[1], len(weight), 7, start=start)
    missing, unexpected = projection.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    assert unexpected == [] and len(missing) == 8
    return projection


@pytest.mark.parametrize("dim, in_features", [(6, 10), (7, 10), (8, 5), (1, 3)])
def test_a_distilled_start_is_the_best_half_of_the_distilled_projection(dim, in_features):
    weight, bias = torch.randn(dim, in_features), torch.randn(dim)
    projection = transferred(weight, bias)
    half = min(dim, in_features) // 2
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    best = (u[:, :half] * s[:half]) @ v[:half]
    x = torch.randn(9, in_features)
    torch.testing.assert_close(projection(x), x @ best.T + bias, rtol=1e-4, atol=1e-4)
    projection(x).square().sum().backward()
    if half:
        gradients = [layer.weight.grad.abs().sum() for layer in projection.generate[::2]]
        assert min(gradients) > 0 and projection.skip[-1].weight.grad.abs().sum() > 0


def test_a_distilled_start_of_low_rank_continues_the_stage_before():
    weight = torch.randn(8, 4) @ torch.randn(4, 12)
    projection = transferred(weight, torch.randn(8))
    x = torch.randn(5, 12)
    torch.testing.assert_close(projection(x), projection.distilled(x), rtol=1e-4, atol=1e-4)
    released = transferred(weight, torch.zeros(8), start="released")
    assert not torch.allclose(released(x), released.distilled(x), atol=0.1)


def test_a_distilled_start_is_made_once():
    """Its own checkpoints, and those of training that has gone on, load as they are."""
    first = transferred(torch.randn(6, 9), torch.randn(6))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(torch.randn_like(parameter))
    again = WeightTransferProjection(9, 6, 7, start="distilled")
    again.load_state_dict(first.state_dict())
    for (name, old), new in zip(first.state_dict().items(), again.state_dict().values()):
        assert torch.equal(old, new), name


def test_the_config_starts_distilled_through_the_checkpointer(build, tmp_path):
    before = build("fpn", 5, *RKD)
    AtomicCheckpointer(before, str(tmp_path)).save("model_final")
    model = build("fpn", 5, *RKD, *TRANSFER, "MODEL.OPEN_VOCAB.TRANSFER_START", "distilled")
    AtomicCheckpointer(model).load(str(tmp_path / "model_final.pth"))
    [new] = model.roi_heads.box_predictors
    projection = new.cls_score.projection
    assert torch.equal(projection.skip[-1].bias, projection.frozen.bias)
    assert torch.count_nonzero(projection.skip[-1].weight) == 0
    generated = projection.generate(projection.frozen.weight)
    singular = torch.linalg.svdvals(projection.frozen.weight)[: DIM // 2]
    torch.testing.assert_close(torch.linalg.svdvals(generated)[: DIM // 2], singular)


def test_bad_settings_are_named():
    with pytest.raises(OVDError, match="TRANSFER_START"):
        build_projection("weight_transfer", 8, DIM, transfer_start="zero")
    with pytest.raises(OVDError, match="TRANSFER_START"):
        build_projection("linear", 8, DIM, transfer_start="distilled")
    with pytest.raises(OVDError, match="TRANSFER_TEACHER"):
        build_projection("weight_transfer", 8, DIM, transfer_teacher="both")
    with pytest.raises(OVDError, match="TRANSFER_TEACHER"):
        build_projection("linear", 8, DIM, transfer_teacher="generated")
    with pytest.raises(OVDError, match="MODEL.OPEN_VOCAB.PROJECTION"):
        build_projection("mlp", 8, DIM)
    with pytest.raises(OVDError, match="MODEL.OPEN_VOCAB.PROJECTION_HIDDEN"):
        build_projection("weight_transfer", 8, DIM, hidden=4)
