"""Teacher regions beside boxes: who learns what, in one pass, on FPN, Cascade and C4."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from small_detectors import (
    DIM,
    KINDS,
    assert_rows_change_nothing,
    make_batch,
    make_embeddings,
    make_target,
    make_vocabulary,
)
from small_detectors import training_losses as losses_of

from ovd_d2.errors import OVDError
from ovd_d2.modeling import set_vocabulary
from ovd_d2.structures import PartialMasks, Supervision

MIXED_RPN = ("MODEL.PROPOSAL_GENERATOR.NAME", "MixedSupervisionRPN")
DISTIL = (*MIXED_RPN, "MODEL.REGION_DISTILLATION.WEIGHT", 0.5)
METHODS = {
    "vild": DISTIL,
    "vild-image": (*DISTIL, "MODEL.OPEN_VOCAB.TRAIN_CLASSIFIER", False),
    "ensemble": (*DISTIL, "MODEL.IMAGE_BRANCH.NAME", "DistilledImageBranch"),
    "control": (*MIXED_RPN, "MODEL.IMAGE_BRANCH.NAME", "LabelledImageBranch"),
}
STUDENTS = ("vild", "vild-image", "ensemble")


def two_images() -> list[Instances]:
    return [
        make_target([[10, 10, 50, 60], [40, 20, 120, 90]], [1, 3]),
        make_target([[5, 30, 70, 80]], [0]),
    ]


def with_regions(targets: Instances, count: int, *, dim: int = DIM, seed: int = 0) -> Instances:
    """``targets`` with ``count`` regions of a made-up teacher in between their rows."""
    generator = torch.Generator().manual_seed(seed)
    before, size = len(targets), targets.image_size
    rows = Instances(size)
    xy = torch.rand(count, 2, generator=generator) * 50
    boxes = torch.cat([xy, xy + 5 + torch.rand(count, 2, generator=generator) * 40], dim=1)
    rows.gt_boxes = Boxes(torch.cat([targets.gt_boxes.tensor, boxes]))
    rows.gt_classes = torch.cat([targets.gt_classes, torch.full((count,), -1)])
    rows.gt_masks = PartialMasks.followed_by_none(targets.gt_masks, count)
    kind = torch.tensor([Supervision.BOX] * before + [Supervision.TEACHER_REGION] * count)
    rows.supervision = kind.long()
    teacher = F.normalize(torch.randn(before + count, dim, generator=generator), dim=1)
    rows.teacher_embedding = teacher.half()
    keys = torch.rand(len(rows), generator=generator)  # regions anywhere, boxes in their order
    keys[:before] = keys[:before].sort().values
    return rows[keys.argsort()]


def regions_in(targets: Instances) -> Instances:
    return targets[targets.supervision == Supervision.TEACHER_REGION]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", STUDENTS)
def test_regions_leave_the_stock_losses_alone(build, kind, method):
    model = build(kind, 5, *METHODS[method])
    plain, rich = assert_rows_change_nothing(
        model,
        two_images(),
        [with_regions(t, 7) for t in two_images()],
        may_change=lambda name: "distill" in name,
    )
    assert ("loss_mask" in plain) == (kind != "c4")
    distilled = [name for name in plain if "distill" in name]
    staged = kind == "cascade" and method != "ensemble"
    wanted = [f"loss_distill_l1_stage{k}" for k in range(3)] if staged else ["loss_distill_l1"]
    assert distilled == wanted
    assert all(plain[name] == 0 < rich[name] for name in distilled)


@pytest.mark.parametrize("method", ["vild", "ensemble"])
def test_a_mask_head_on_res5_sees_the_proposals_only(build, method):
    model = build("c4", 5, *METHODS[method], "MODEL.MASK_ON", True,
                  "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead")  # fmt: skip
    regions = [with_regions(t, 7) for t in two_images()]
    plain, _ = assert_rows_change_nothing(
        model, two_images(), regions, may_change=lambda name: "distill" in name
    )
    assert {"loss_mask", "loss_cls", "loss_box_reg"} < plain.keys()


def slow_distillation(model, seen, kind, method, stage=0):
    """Region by region: pool it alone, the head of its branch, projection, L1 to its teacher."""
    heads, (features, targets) = model.roi_heads, seen
    total, count = 0, 0
    for image, rows in enumerate(targets):
        of_image = {name: value[image : image + 1] for name, value in features.items()}
        for row in range(len(rows)):
            if rows.supervision[row] != Supervision.TEACHER_REGION:
                continue
            pooled = heads.pool(of_image, [Boxes(rows.gt_boxes.tensor[row : row + 1])])
            if method == "ensemble":
                branch = heads.image_branch
                x = branch.cls_score.projection(branch.head(pooled).flatten(1))
            elif kind == "c4":
                x = heads.box_predictor.cls_score.projection(heads.res5(pooled).mean((2, 3)))
            elif kind == "cascade":
                predictor = heads.box_predictor[stage]
                x = predictor.cls_score.projection(heads.box_head[stage](pooled))
            else:
                x = heads.box_predictor.cls_score.projection(heads.box_head(pooled))
            e, v = x[0].double(), rows.teacher_embedding[row].double()
            total = total + (v / v.norm() - e / e.norm()).abs().sum()
            count += 1
    return 0.5 * total / count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["vild", "ensemble"])
def test_the_loss_is_the_papers_region_by_region(build, kind, method):
    model = build(kind, 5, *METHODS[method])
    targets = [with_regions(two_images()[0], 4), with_regions(two_images()[1], 2, seed=1)]
    seen = []
    hook = model.roi_heads.register_forward_pre_hook(lambda m, args: seen.append(args[1]))
    losses = losses_of(model, make_batch(targets))
    hook.remove()
    for stage in range(3 if kind == "cascade" and method == "vild" else 1):
        name = f"loss_distill_l1_stage{stage}" if kind == "cascade" and method == "vild" else (
            "loss_distill_l1")  # fmt: skip
        expected = slow_distillation(model, (seen[0], targets), kind, method, stage)
        torch.testing.assert_close(losses[name].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", STUDENTS)
def test_one_pooling_and_head_pass(build, kind, method):
    """Regions cost rows, not passes: no module runs more often than without them."""
    model = build(kind, 5, *METHODS[method])
    stages = [f"box_head.{k}" for k in range(3)] if kind == "cascade" else ["box_head"]
    watched = {"box_pooler", "pooler", "res5", "image_branch.head", *stages}
    calls = []
    for name, module in model.roi_heads.named_modules():
        if name in watched:
            module.register_forward_hook(lambda m, a, o, name=name: calls.append(name))
    losses_of(model, make_batch(two_images()))
    without = sorted(calls)
    calls.clear()
    losses_of(model, make_batch([with_regions(t, 7) for t in two_images()]))
    assert sorted(calls) == without
    assert len(without) == {"fpn": 2, "c4": 2, "cascade": 6}[kind] + (method == "ensemble")


@pytest.mark.parametrize(
    ("kind", "method"),
    [*(("fpn", m) for m in METHODS), *((k, m) for k in ("cascade", "c4") for m in STUDENTS[::2])],
)
def test_no_batch_leaves_a_parameter_without_gradient(build, kind, method):
    model = build(kind, 5, *METHODS[method])
    boxed, empty = two_images()[0], make_target([], [])
    weak = make_target([[10, 10, 50, 60]], [1])
    weak.supervision = torch.tensor([int(Supervision.IMAGE_LABEL)])
    batches = (
        [with_regions(boxed, 3), with_regions(boxed, 0)],
        [with_regions(boxed, 0), with_regions(boxed, 0)],
        [boxed, with_regions(empty, 2)],
        [empty],
        [weak, weak],
        [with_regions(empty, 1)],
    )
    for targets in batches:
        model.zero_grad()
        losses = losses_of(model, make_batch(targets))
        assert all(torch.isfinite(v) for v in losses.values()), losses
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert torch.isfinite(parameter.grad).all(), name


def test_vild_image_learns_from_the_teacher_alone(build):
    model = build("fpn", 5, *METHODS["vild-image"])
    losses = losses_of(model, make_batch([with_regions(t, 3) for t in two_images()]))
    assert losses["loss_cls"] == 0 < losses["loss_distill_l1"]
    losses["loss_cls"].backward(retain_graph=True)
    classifier = model.roi_heads.box_predictor.cls_score
    assert classifier.projection.weight.grad.abs().sum() == 0
    losses["loss_distill_l1"].backward()
    assert classifier.projection.weight.grad.abs().sum() > 0
    assert classifier.background.grad.abs().sum() == 0


def test_the_branches_of_the_ensemble_do_not_mix(build):
    """The teacher reaches the image branch and the shared backbone, never the text branch."""
    model = build("fpn", 5, *METHODS["ensemble"])
    losses = losses_of(model, make_batch([with_regions(t, 3) for t in two_images()]))
    losses["loss_distill_l1"].backward()
    heads = model.roi_heads
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(n.startswith("backbone.") for n in moved)
    assert {n for n, _ in heads.image_branch.named_parameters(prefix="roi_heads.image_branch")} <= (
        moved | {"roi_heads.image_branch.cls_score.background"}
    )
    assert not any(n.startswith(("roi_heads.box_head", "roi_heads.box_predictor")) for n in moved)


def test_the_control_has_the_ensembles_parameters_and_learns_from_labels(build):
    torch.manual_seed(3)
    control, ensemble = build("fpn", 5, *METHODS["control"]), build("fpn", 5, *METHODS["ensemble"])
    names = [set(dict(m.named_parameters())) for m in (control, ensemble)]
    assert names[0] - names[1] == {"roi_heads.image_branch.cls_score.background"}
    assert not names[1] - names[0]
    plain = losses_of(control, make_batch(two_images()))
    rich = losses_of(control, make_batch([with_regions(t, 4) for t in two_images()]))
    assert plain["loss_cls_image"] > 0
    assert all(torch.equal(plain[name], rich[name]) for name in plain)


def test_the_controls_loss_is_the_text_branchs_on_equal_heads(build):
    model = build("fpn", 5, *METHODS["control"])
    vocabulary = make_vocabulary(5, novel=(2, 4))
    set_vocabulary(model, vocabulary, make_embeddings(vocabulary))
    heads = model.roi_heads
    heads.image_branch.head.load_state_dict(heads.box_head.state_dict())
    heads.image_branch.cls_score.load_state_dict(heads.box_predictor.cls_score.state_dict())
    losses = losses_of(model, make_batch(two_images()))
    assert torch.equal(losses["loss_cls"], losses["loss_cls_image"])


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_weight_and_kind_of_loss(build, loss):
    batch = make_batch([with_regions(t, 3) for t in two_images()])
    values = []
    for weight in (0.5, 4.0):
        model = build("fpn", 5, *MIXED_RPN, "MODEL.REGION_DISTILLATION.WEIGHT", weight,
                      "MODEL.REGION_DISTILLATION.LOSS", loss)  # fmt: skip
        losses = losses_of(model, batch)
        assert [n for n in losses if "distill" in n] == [f"loss_distill_{loss}"]
        values.append(losses[f"loss_distill_{loss}"])
    torch.testing.assert_close(values[1], 8 * values[0])


def test_cosine_to_the_teacher_is_logged(build):
    from detectron2.utils.events import EventStorage

    model = build("fpn", 5, *METHODS["vild"]).train()
    with EventStorage() as storage:
        model(make_batch([with_regions(t, 3) for t in two_images()]))
        assert -1 <= storage.latest()["distill/cosine"][0] <= 1


@pytest.mark.parametrize("method", ["vild", "ensemble"])
def test_a_teacher_of_another_width_is_refused(build, method):
    model = build("fpn", 5, *METHODS[method])
    with pytest.raises(OVDError, match=rf"\(3, {DIM + 1}\).*\(3, {DIM}\).*EMBED_DIM"):
        losses_of(model, make_batch([with_regions(two_images()[0], 3, dim=DIM + 1)]))


def test_tagged_rows_without_embedding_are_refused(build):
    model = build("fpn", 5, *METHODS["vild"])
    targets = with_regions(two_images()[0], 2)
    targets.remove("teacher_embedding")
    with pytest.raises(OVDError, match=r"REGION_STORE"):
        losses_of(model, make_batch([targets]))


def test_the_teacher_must_share_the_classes_encoder(build):
    vocabulary = make_vocabulary(5)
    for method in ("vild", "ensemble"):
        model = build("fpn", 5, *METHODS[method])
        set_vocabulary(model, vocabulary, make_embeddings(vocabulary, encoder_id="minilm@1"))
        model.roi_heads.check_teacher("minilm@1")
        with pytest.raises(OVDError, match=r"clip@2.*minilm@1.*TEXT_ENCODER"):
            model.roi_heads.check_teacher("clip@2")
    control = build("fpn", 5, *METHODS["control"])
    set_vocabulary(control, vocabulary, make_embeddings(vocabulary, encoder_id="minilm@1"))
    control.roi_heads.check_teacher("clip@2")  # does not learn from it


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["vild", "ensemble"])
def test_trains_under_autocast(build, kind, method):
    """The heads in bfloat16; the rest, which is slow on a CPU and not ours, in full precision."""
    model = build(kind, 5, *METHODS[method], "MODEL.MASK_ON", False)
    for part in (model.backbone, model.proposal_generator):
        part.forward = torch.autocast("cpu", enabled=False)(part.forward)
    for counts in ((3, 0), (0, 0)):
        targets = [with_regions(t, n) for t, n in zip(two_images(), counts)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = losses_of(model, make_batch(targets))
            sum(losses.values()).backward()
        assert all(torch.isfinite(v) and v.dtype == torch.float32
                   for n, v in losses.items() if "distill" in n)  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_one_class_and_a_vocabulary_without_base_class(build, method):
    model = build("fpn", 5, *METHODS[method])
    for vocabulary in (make_vocabulary(1), make_vocabulary(3, novel=(0, 1, 2))):
        set_vocabulary(model, vocabulary, make_embeddings(vocabulary))
        losses = losses_of(model, make_batch([with_regions(make_target([[9, 9, 60, 60]], [0]), 2)]))
        assert all(torch.isfinite(v) for v in losses.values())
        model.eval()
        with torch.no_grad():
            model(make_batch(two_images()))


@pytest.mark.parametrize("norm", ["", "BN", "GN"])
def test_convolutional_heads_of_the_paper(build, norm):
    """4 conv + 2 FC; with batch norm a branch without any region must not spoil its statistics."""
    opts = ("MODEL.ROI_BOX_HEAD.NUM_CONV", 2, "MODEL.ROI_BOX_HEAD.CONV_DIM", 32,
            "MODEL.ROI_BOX_HEAD.NORM", norm)  # fmt: skip
    model = build("fpn", 5, *METHODS["ensemble"], *opts)
    for counts in ((0, 0), (1, 0), (4, 3)):
        model.zero_grad()
        targets = [with_regions(t, n) for t, n in zip(two_images(), counts)]
        losses = losses_of(model, make_batch(targets))
        sum(losses.values()).backward()
        assert all(torch.isfinite(v) for v in losses.values())
        for name, value in model.state_dict().items():
            assert torch.isfinite(value.float()).all(), name
        assert all(p.grad is not None for p in model.roi_heads.parameters() if p.requires_grad)


def test_size_of_the_second_head_and_projection(build):
    model = build(
        "fpn", 5, *METHODS["ensemble"], "MODEL.IMAGE_BRANCH.FC_DIM", 24,
        "MODEL.IMAGE_BRANCH.NUM_FC", 3, "MODEL.IMAGE_BRANCH.PROJECTION_HIDDEN", 48,
        "MODEL.OPEN_VOCAB.PROJECTION_HIDDEN", 20,
    )  # fmt: skip
    heads = model.roi_heads
    assert [layer.out_features for layer in heads.image_branch.head.fcs] == [24, 24, 24]
    image, text = heads.image_branch.cls_score.projection, heads.box_predictor.cls_score.projection
    assert [tuple(layer.weight.shape) for layer in (image[0], image[2])] == [(48, 24), (DIM, 48)]
    assert [tuple(layer.weight.shape) for layer in (text[0], text[2])] == [(20, 32), (DIM, 20)]
    losses = losses_of(model, make_batch([with_regions(t, 3) for t in two_images()]))
    sum(losses.values()).backward()
    assert image[0].weight.grad.abs().sum() > 0 < text[0].weight.grad.abs().sum()


BAD = {
    "MODEL.REGION_DISTILLATION.LOSS": ("MODEL.REGION_DISTILLATION.LOSS", "huber"),
    "MODEL.REGION_DISTILLATION.WEIGHT": ("MODEL.REGION_DISTILLATION.WEIGHT", -1.0),
    "MODEL.IMAGE_BRANCH.NAME": ("MODEL.IMAGE_BRANCH.NAME", "SomethingElse"),
    "MODEL.IMAGE_BRANCH.SCORES": (
        "MODEL.IMAGE_BRANCH.NAME", "DistilledImageBranch", "MODEL.IMAGE_BRANCH.SCORES", "mean"),
    "MODEL.IMAGE_BRANCH.LAMBDA": (
        "MODEL.IMAGE_BRANCH.NAME", "DistilledImageBranch", "MODEL.IMAGE_BRANCH.LAMBDA", 2.0),
    "MODEL.OPEN_VOCAB.TRAIN_CLASSIFIER": (
        "MODEL.IMAGE_BRANCH.NAME", "LabelledImageBranch",
        "MODEL.OPEN_VOCAB.TRAIN_CLASSIFIER", False),
}  # fmt: skip


@pytest.mark.parametrize("key", BAD)
def test_bad_settings_are_named(build, key):
    with pytest.raises(OVDError, match=key):
        build("fpn", 5, *DISTIL, *BAD[key])


@pytest.mark.parametrize("opts", [
    ("MODEL.OPEN_VOCAB.TRAIN_CLASSIFIER", False),
    ("MODEL.IMAGE_BRANCH.NAME", "DistilledImageBranch"),
])  # fmt: skip
def test_a_student_without_a_loss_is_refused(build, opts):
    with pytest.raises(OVDError, match="REGION_DISTILLATION.WEIGHT"):
        build("fpn", 5, *opts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["vild", "ensemble", "control"])
@torch.no_grad()
def test_region_embeddings_are_those_of_the_branch_the_teacher_teaches(build, kind, method):
    model = build(kind, 5, *METHODS[method]).eval()
    heads = model.roi_heads
    features = model.backbone(model.preprocess_image(make_batch(two_images())).tensor)
    boxes = [Boxes(targets.gt_boxes.tensor.clone()) for targets in two_images()]
    found = heads.region_embeddings(features, boxes)
    pooled = heads.pool(features, boxes)
    if method == "ensemble":
        branch = heads.image_branch
        wanted = branch.cls_score.projection(branch.head(pooled).flatten(1))
    else:  # the control's second head has learned from labels: the text branch answers
        head = {"fpn": "box_head", "cascade": "box_head", "c4": "res5"}[kind]
        head = getattr(heads, head)[-1] if kind == "cascade" else getattr(heads, head)
        x = head(pooled)
        x = x.mean((2, 3)) if kind == "c4" else x
        wanted = heads.box_predictors[-1].cls_score.projection(x)
    torch.testing.assert_close(found, F.normalize(wanted, dim=1))
    nothing = heads.region_embeddings(features, [box[:0] for box in boxes])
    assert nothing.shape == (0, DIM)
