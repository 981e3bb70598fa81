"""The heads under Detectron2's own GeneralizedRCNN, on FPN, Cascade and C4."""

import dataclasses

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import Instances
from small_detectors import KINDS, make_batch, make_embeddings, make_target, make_vocabulary
from small_detectors import training_losses as losses_of

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary
from ovd_d2.modeling import get_vocabulary, set_vocabulary
from ovd_d2.structures import Supervision

BOX, LABEL, TEACHER = Supervision.BOX, Supervision.IMAGE_LABEL, Supervision.TEACHER_REGION
MIXED_RPN = ("MODEL.PROPOSAL_GENERATOR.NAME", "MixedSupervisionRPN")


def two_images() -> list[Instances]:
    return [
        make_target([[10, 10, 50, 60], [40, 20, 120, 90]], [1, 3]),
        make_target([[5, 30, 70, 80]], [0]),
    ]


def with_extra_rows(targets: list[Instances], kind=TEACHER) -> list[Instances]:
    """The same targets, each with two extra rows of another supervision in front."""
    out = []
    for t in targets:
        extra = make_target([[0, 0, 30, 30], [20, 20, 90, 90]], [4, 2], t.image_size)
        merged = Instances.cat([extra, t])
        tags = [kind] * 2 + [BOX] * len(t)
        merged.supervision = torch.tensor(tags, dtype=torch.int64)
        out.append(merged)
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extra", [TEACHER, LABEL])
def test_stock_losses_are_bit_equal_with_and_without_extra_rows(build, kind, extra):
    model = build(kind, 5, *MIXED_RPN)
    plain = losses_of(model, make_batch(two_images()))
    mixed = losses_of(model, make_batch(with_extra_rows(two_images(), extra)))
    assert plain.keys() == mixed.keys()
    for name in plain:
        assert torch.equal(plain[name], mixed[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_losses_other_than_classification_are_detectron2s_bit_by_bit(zoo_cfg, build, kind):
    """Same weights, same random numbers, Detectron2's own heads beside ours."""
    ours = build(kind)
    stock_name = {
        "fpn": "StandardROIHeads", "cascade": "CascadeROIHeads", "c4": "Res5ROIHeads",
    }[kind]  # fmt: skip
    cfg = zoo_cfg(kind, 5, "MODEL.ROI_HEADS.NAME", stock_name, "MODEL.ROI_HEADS.NUM_CLASSES", 5)
    stock = build_model(cfg)
    shared = {k: v for k, v in ours.state_dict().items() if "cls_score" not in k}
    missing, unexpected = stock.load_state_dict(shared, strict=False)
    assert not unexpected and all("cls_score" in k for k in missing)
    mine = losses_of(ours, make_batch(two_images()))
    theirs = losses_of(stock, make_batch(two_images()))
    assert mine.keys() == theirs.keys()
    for name in mine:
        if "loss_cls" not in name:
            assert torch.equal(mine[name], theirs[name]), name


def test_classification_loss_equals_detectron2s_on_the_same_logits(build):
    """No held-out class: cross entropy and sigmoid loss are the parent's, bit by bit."""
    from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

    for opts in ((), ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True)):
        predictor = build("fpn", 5, *opts).roi_heads.box_predictor
        torch.manual_seed(1)
        logits, deltas = torch.randn(32, 6), torch.randn(32, 4)
        proposal = make_target([[0, 0, 20, 20]] * 32, torch.randint(0, 6, (32,)).tolist())
        proposal.proposal_boxes = proposal.gt_boxes
        from detectron2.utils.events import EventStorage

        with EventStorage():
            mine = predictor.losses((logits, deltas), [proposal])
            theirs = FastRCNNOutputLayers.losses(_plain(predictor), (logits, deltas), [proposal])
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=1e-6)
            assert opts or torch.equal(mine[name], theirs[name]), name


def _plain(predictor):
    """Detectron2's layers with the settings of ours."""
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

    return FastRCNNOutputLayers(
        ShapeSpec(channels=32),
        box2box_transform=predictor.box2box_transform,
        num_classes=5,
        cls_agnostic_bbox_reg=True,
        use_sigmoid_ce=predictor.use_sigmoid_ce,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigmoid", [False, True])
def test_mixed_and_weak_only_batches_leave_no_parameter_without_gradient(build, kind, sigmoid):
    model = build(kind, 5, *MIXED_RPN, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", sigmoid)
    weak = make_target([[10, 10, 50, 60]], [1], supervision=torch.tensor([int(LABEL)]))
    boxed = two_images()[0]
    empty = make_target([], [])
    teacher_only = make_target([[1, 1, 40, 40]], [0], supervision=torch.tensor([int(TEACHER)]))
    for targets in ([boxed, weak], [weak, weak], [empty, boxed], [empty], [teacher_only]):
        model.zero_grad()
        losses = losses_of(model, make_batch(targets))
        assert all(torch.isfinite(v) for v in losses.values()), losses
        sum(losses.values()).backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == []


def test_weak_images_say_nothing_about_background(build):
    model = build("fpn", 5, *MIXED_RPN)
    weak = make_target([[10, 10, 50, 60]], [1], supervision=torch.tensor([int(LABEL)]))
    losses = losses_of(model, make_batch([weak, weak]))
    assert all(v == 0 for v in losses.values()), losses
    empty = losses_of(model, make_batch([make_target([], [])]))
    assert empty["loss_cls"] > 0 and empty["loss_rpn_cls"] > 0  # annotated, nothing there


def test_an_rpn_that_nothing_could_learn_from_only_proposes(build):
    """Without learning parameters in it and before it; the same proposals as ever."""
    model = build("fpn", 5, *MIXED_RPN)
    rpn, seen = model.proposal_generator, []
    rpn.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    rpn.requires_grad_(False)
    with_losses = losses_of(model, make_batch(two_images()))  # the backbone learns from them
    assert "loss_rpn_cls" in with_losses
    model.backbone.requires_grad_(False)
    without = losses_of(model, make_batch(two_images()))
    assert {name for name in with_losses if "rpn" not in name} == without.keys()
    before, after = seen
    for one, other in zip(before, after):
        assert torch.equal(one.proposal_boxes.tensor, other.proposal_boxes.tensor)
    rpn.requires_grad_(True)
    assert losses_of(model, make_batch(two_images())).keys() == with_losses.keys()


@pytest.mark.parametrize("counted", [True, False], ids=["LVIS", "COCO"])
def test_novel_classes_take_no_part_in_training(build, counted):
    """Neither the names nor the embeddings of held-out classes change the loss, whether they are
    known by their image counts (LVIS) or by the mark alone (COCO)."""
    model = build("fpn")
    vocabulary = make_vocabulary(5, novel=(2, 4))
    if not counted:
        vocabulary = dataclasses.replace(vocabulary, image_counts=())
    batch = make_batch(two_images())
    values = make_embeddings(vocabulary)
    set_vocabulary(model, vocabulary, values)
    first = losses_of(model, batch)
    changed = make_embeddings(vocabulary).embeddings.clone()
    changed[[2, 4]] = make_embeddings(vocabulary, seed=9).embeddings[[2, 4]]
    set_vocabulary(model, vocabulary, type(values)(changed, vocabulary.names, "test-encoder"))
    second = losses_of(model, batch)
    assert all(torch.equal(first[k], second[k]) for k in first)
    changed[1] = -changed[1]  # a base class does
    set_vocabulary(model, vocabulary, type(values)(changed, vocabulary.names, "test-encoder"))
    assert not torch.equal(first["loss_cls"], losses_of(model, batch)["loss_cls"])


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_swap_between_calls(build, kind):
    model = build(kind, 5, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batch = make_batch(two_images())
    model.eval()

    def predict():
        with torch.no_grad():
            return model(batch)[0]["instances"]

    original = make_vocabulary(5)
    set_vocabulary(model, original, make_embeddings(original))
    first = predict()
    for num_classes in (1, 37):
        vocabulary = make_vocabulary(num_classes)
        set_vocabulary(model, vocabulary, make_embeddings(vocabulary))
        found = predict()
        assert len(found) and int(found.pred_classes.max()) < num_classes
        losses = losses_of(model, make_batch([make_target([[9, 9, 60, 60]], [num_classes - 1])]))
        assert all(torch.isfinite(v) for v in losses.values())
        model.eval()
    after = model.state_dict()
    assert before.keys() == after.keys()
    set_vocabulary(model, original, make_embeddings(original))
    assert torch.equal(predict().scores, first.scores)


def test_a_class_is_found_by_its_embedding_not_its_index(build):
    """Permuting the vocabulary permutes the predicted indices and nothing else."""
    model = build("fpn", 5, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0).eval()
    vocabulary = make_vocabulary(7)
    values = make_embeddings(vocabulary)
    order = [3, 0, 6, 1, 5, 2, 4]
    permuted = make_vocabulary(7)
    permuted = type(vocabulary)(names=tuple(vocabulary.names[i] for i in order))
    set_vocabulary(model, vocabulary, values)
    batch = make_batch(two_images())
    with torch.no_grad():
        first = model(batch)[0]["instances"]
        set_vocabulary(
            model, permuted, type(values)(values.embeddings[order], permuted.names, "test-encoder")
        )
        second = model(batch)[0]["instances"]
    names = [vocabulary.names[i] for i in first.pred_classes]
    assert names == [permuted.names[i] for i in second.pred_classes]
    torch.testing.assert_close(first.scores, second.scores)


def test_swap_is_checked_and_atomic(build):
    model = build("cascade")
    vocabulary = make_vocabulary(3)
    wrong = make_embeddings(make_vocabulary(4))
    with pytest.raises(OVDError, match="4 names"):
        set_vocabulary(model, vocabulary, wrong)
    good = make_embeddings(vocabulary)
    set_vocabulary(model, vocabulary, good)
    other = make_embeddings(vocabulary, encoder_id="clip@2")
    with pytest.raises(OVDError, match="clip@2"):
        set_vocabulary(model, make_vocabulary(3), other)
    assert get_vocabulary(model) == vocabulary
    assert all(p.num_classes == 3 for p in model.roi_heads.box_predictors)


def test_closed_set_models_are_named(zoo_cfg):
    cfg = zoo_cfg("fpn", 5, "MODEL.ROI_HEADS.NAME", "StandardROIHeads")
    model = build_model(cfg)
    assert get_vocabulary(model) is None
    vocabulary = make_vocabulary(2)
    with pytest.raises(OVDError, match="MODEL.ROI_HEADS.NAME"):
        set_vocabulary(model, vocabulary, make_embeddings(vocabulary))


@pytest.mark.parametrize(
    "key", ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK"]
)
def test_class_specific_boxes_and_masks_are_refused(build, key):
    with pytest.raises(OVDError, match=key):
        build("fpn", 5, key, False)


def test_federated_loss_needs_sigmoid_and_image_counts(build):
    with pytest.raises(OVDError, match="USE_SIGMOID_CE"):
        build("fpn", 5, "MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True)
    both = ("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True)
    model = build("fpn", 5, *both)
    with pytest.raises(OVDError, match="image counts"):
        losses_of(model, make_batch(two_images()))
    vocabulary = make_vocabulary(5, novel=(4,))
    set_vocabulary(model, vocabulary, make_embeddings(vocabulary))
    assert torch.isfinite(losses_of(model, make_batch(two_images()))["loss_cls"])


def test_federated_negatives_are_drawn_by_the_root_of_image_counts(build):
    """Or by another power that the config names; held-out classes never."""
    fed = ("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True)
    counted = Vocabulary(
        names=("a", "b", "c", "d"), image_counts=(100, 4, 0, 9), is_novel=(False,) * 3 + (True,)
    )
    for power, wanted in ((0.5, [10, 2, 0, 0]), (1.0, [100, 4, 0, 0])):
        model = build("fpn", 5, *fed, "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER", power)
        set_vocabulary(model, counted, make_embeddings(counted))
        assert model.roi_heads.box_predictor.sampling_weight.tolist() == wanted
    assert build("fpn").roi_heads.box_predictor.fed_loss_freq_weight_power == 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_trains_and_infers_under_autocast(build, kind, dtype):
    model = build(kind, 5, *MIXED_RPN)
    with torch.autocast("cpu", dtype=dtype):
        losses = losses_of(model, make_batch(with_extra_rows(two_images())))
        sum(losses.values()).backward()
        assert all(torch.isfinite(v) for v in losses.values())
        model.eval()
        with torch.no_grad():
            model(make_batch(two_images()))


def test_unmodified_meta_architecture(build):
    model = build("fpn")
    assert type(model) is META_ARCH_REGISTRY.get("GeneralizedRCNN")
    assert type(model).__module__.startswith("detectron2.")


@pytest.mark.parametrize("kind", KINDS)
def test_full_size_model_zoo_detector_builds_and_steps(build, kind):
    """The README's promise for three model-zoo yamls, at their real widths and depth."""
    model = build(kind, 5, *MIXED_RPN, slim=False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-4)
    losses = losses_of(model, make_batch(two_images()))
    assert ("loss_mask" in losses) == (kind != "c4")
    before = [p.detach().clone() for p in parameters]
    sum(losses.values()).backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, parameters))
    model.eval()
    with torch.no_grad():
        found = model(make_batch(two_images()))[0]["instances"]
    assert found.image_size == (96, 128)
    assert kind == "c4" or found.has("pred_masks")


def test_first_values_of_the_box_layers_are_those_of_the_public_code(build):
    """c2_xavier_fill, then std 0.001; both biases 0 (Detic, RKD)."""
    first, _, last = build(
        "c4", 5, "MODEL.OPEN_VOCAB.BOX_MLP", True
    ).roi_heads.box_predictor.bbox_pred
    assert first.weight.std().item() == pytest.approx(first.in_features**-0.5, rel=0.03)
    assert last.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not first.bias.any() and not last.bias.any()
