"""RKD on FPN, Cascade and C4: boxes, teacher regions and image labels in any mixture."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
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
from ovd_d2.losses import federated_class_mask
from ovd_d2.modeling import set_vocabulary
from ovd_d2.structures import PartialMasks, Supervision

BOX, LABEL, REGION = Supervision.BOX, Supervision.IMAGE_LABEL, Supervision.TEACHER_REGION
RKD = (
    "MODEL.PROPOSAL_GENERATOR.NAME", "MixedSupervisionRPN",
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True, "MODEL.OPEN_VOCAB.BACKGROUND", "zero",
    "MODEL.OPEN_VOCAB.USE_BIAS", True, "MODEL.OPEN_VOCAB.BOX_MLP", True,
    "MODEL.OPEN_VOCAB.LOGIT_SCALE", 50.0,
    "MODEL.REGION_DISTILLATION.WEIGHT", 25.0, "MODEL.REGION_DISTILLATION.LOSS", "l1_mean",
    "MODEL.REGION_DISTILLATION.RELATION_WEIGHT", 13.0, "MODEL.IMAGE_LABELS.WEIGHT", 0.1,
)  # fmt: skip
METHODS = {"rkd": RKD, "weight transfer": (*RKD, "MODEL.OPEN_VOCAB.PROJECTION", "weight_transfer")}
EXTRA = ("loss_distill_l1", "loss_distill_relation", "loss_image_label")


def is_extra(name: str) -> bool:
    return name.startswith(EXTRA)


def image(boxes=(), classes=(), regions=0, labels=(), seed=0, size=(96, 128)) -> Instances:
    """Target rows: boxes, then in random order regions of a made-up teacher and image labels."""
    generator = torch.Generator().manual_seed(seed)
    targets = make_target(list(boxes), list(classes), size)
    more = regions + len(labels)
    rows = Instances(size)
    xy = torch.rand(more, 2, generator=generator) * 50
    wild = torch.cat([xy, xy + 5 + torch.rand(more, 2, generator=generator) * 40], dim=1)
    rows.gt_boxes = Boxes(torch.cat([targets.gt_boxes.tensor, wild]))
    classes = [torch.full((regions,), -1), torch.tensor(labels, dtype=torch.long)]
    rows.gt_classes = torch.cat([targets.gt_classes, *classes])
    rows.gt_masks = PartialMasks.followed_by_none(targets.gt_masks, more)
    rows.supervision = torch.tensor(
        [BOX] * len(targets) + [REGION] * regions + [LABEL] * len(labels), dtype=torch.long
    )
    rows.teacher_embedding = torch.randn(len(rows), DIM, generator=generator).half()
    order = torch.arange(len(rows))
    order[len(targets) :] = len(targets) + torch.randperm(more, generator=generator)
    return rows[order]


TWO = {"boxes": [[10, 10, 50, 60], [40, 20, 120, 90]], "classes": [1, 3]}
ONE = {"boxes": [[5, 30, 70, 80]], "classes": [0]}
BATCHES = {
    "everything": lambda: [image(**TWO, regions=4, labels=[2, 0]), image(**ONE, regions=2)],
    "boxes alone": lambda: [image(**TWO), image(**ONE)],
    "labels alone": lambda: [image(labels=[2, 4]), image(labels=[1])],
    "labels and regions": lambda: [image(labels=[2], regions=3), image(labels=[1], regions=1)],
    "regions alone": lambda: [image(regions=3), image(regions=1)],
    "boxed and weak images": lambda: [image(**TWO, regions=2), image(labels=[4], regions=2)],
    "one region": lambda: [image(**ONE, regions=1), image(**TWO)],
    "empty": lambda: [image(), image()],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_batch_has_the_same_losses_and_reaches_every_parameter(build, kind, method):
    """In the public code the loss names differ between kinds of batches, which stalls DDP."""
    model = build(kind, 5, *METHODS[method])
    names = None
    for what, make in BATCHES.items():
        model.zero_grad()
        losses = losses_of(model, make_batch(make()))
        names = names or losses.keys()
        assert losses.keys() == names, what
        assert all(torch.isfinite(value) for value in losses.values()), (what, losses)
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, (what, name)
                assert torch.isfinite(parameter.grad).all(), (what, name)
    stages = [f"_stage{k}" for k in range(3)] if kind == "cascade" else [""]
    assert {n for n in names if is_extra(n)} == {e + s for e in EXTRA for s in stages}


@pytest.mark.parametrize("kind", KINDS)
def test_which_rows_feed_which_loss(build, kind):
    model = build(kind, 5, *RKD)
    has = {
        "boxes alone": (),
        "labels alone": ("loss_image_label",),
        "regions alone": EXTRA[:2],
        "labels and regions": EXTRA,
        "one region": EXTRA[:1],  # one region is related to itself alone
    }
    for what, wanted in has.items():
        losses = losses_of(model, make_batch(BATCHES[what]()))
        for name, value in losses.items():
            if is_extra(name):
                assert (value > 1e-6) == name.startswith(wanted), (what, name, value)


@pytest.mark.parametrize("kind", KINDS)
def test_each_extra_loss_reaches_the_box_head_and_the_backbone(build, kind):
    """A teacher or a label that moves the projection alone teaches the detector little."""
    model = build(kind, 5, *RKD)
    losses = losses_of(model, make_batch(BATCHES["everything"]()))
    stages = {"fpn": ["box_head"], "cascade": [f"box_head.{k}" for k in range(3)], "c4": ["res5"]}
    for extra in EXTRA:
        for stage, head in enumerate(stages[kind]):
            name = f"{extra}_stage{stage}" if kind == "cascade" else extra
            model.zero_grad()
            losses[name].backward(retain_graph=True)
            for part in (f"roi_heads.{head}.", "backbone."):
                reached = [
                    parameter.grad is not None and bool(parameter.grad.any())
                    for key, parameter in model.named_parameters()
                    if key.startswith(part) and key.endswith("weight") and parameter.requires_grad
                ]
                assert sum(reached) > len(reached) / 2, (name, part)


@pytest.mark.parametrize("kind", KINDS)
def test_weak_batches_teach_neither_rpn_nor_boxes(build, kind):
    model = build(kind, 5, *RKD)
    losses = losses_of(model, make_batch(BATCHES["labels and regions"]()))
    assert all(value == 0 for name, value in losses.items() if not is_extra(name)), losses


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_labels_and_regions_together_leave_the_stock_losses_alone(build, kind, method):
    model = build(kind, 5, *METHODS[method])
    rich = [image(**TWO, regions=7, labels=[2, 0, 4]), image(**ONE, labels=[1])]
    assert_rows_change_nothing(model, BATCHES["boxes alone"](), rich, may_change=is_extra)


def slow_image_label_loss(model, seen, kind, stage):
    """Row by row: pool the pseudo box alone, the head, the formula of the logits, the loss."""
    heads, (features, targets) = model.roi_heads, seen
    predictor = heads.box_predictors[stage]
    score = predictor.cls_score
    total, images = 0, 0
    for index, rows in enumerate(targets):
        of_image = {name: value[index : index + 1] for name, value in features.items()}
        labelled = (rows.supervision == LABEL).nonzero()[:, 0].tolist()
        images += bool(labelled)
        for row in labelled:
            pooled = heads.pool(of_image, [Boxes(rows.gt_boxes.tensor[row : row + 1])])
            if kind == "c4":
                x = heads.res5(pooled).mean((2, 3))
            else:
                x = (heads.box_head[stage] if kind == "cascade" else heads.box_head)(pooled)
            e = score.projection(x)[0]
            logits = 50 * score.class_embeddings @ (e / e.norm())
            logits = torch.cat([logits, logits.new_zeros(1)]) + score.bias
            target = F.one_hot(rows.gt_classes[row], len(logits)).bool()
            p = torch.where(target, logits, -logits)
            total = total - F.logsigmoid(p).sum() / len(labelled)
    return 0.1 * total / images


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_label_loss_is_the_equation_row_by_row(build, kind):
    """The mean is over the images that have a label: the second of the three has none."""
    model = build(kind, 5, *RKD)
    targets = [
        image(**TWO, regions=2, labels=[2, 0, 2]), image(**ONE, regions=1), image(labels=[4]),
    ]  # fmt: skip
    seen = []
    hook = model.roi_heads.register_forward_pre_hook(lambda m, args: seen.append(args[1]))
    losses = losses_of(model, make_batch(targets))
    hook.remove()
    for stage in range(3 if kind == "cascade" else 1):
        suffix = f"_stage{stage}" if kind == "cascade" else ""
        expected = slow_image_label_loss(model, (seen[0], targets), kind, stage)
        torch.testing.assert_close(
            losses["loss_image_label" + suffix], expected, rtol=1e-4, atol=1e-5
        )


def test_novel_names_learn_from_image_labels_only(build):
    """Held out of the detection loss, active in the image-label loss."""
    model = build("fpn", 5, *RKD)
    vocabulary = make_vocabulary(5, novel=(2, 4))
    rows = make_embeddings(vocabulary)
    set_vocabulary(model, vocabulary, rows)
    batch = make_batch([image(**TWO, labels=[2])])
    first = losses_of(model, batch)
    changed = rows.embeddings.clone()
    changed[2] = -changed[2]
    set_vocabulary(model, vocabulary, type(rows)(changed, rows.names, rows.encoder_id))
    second = losses_of(model, batch)
    assert torch.equal(first["loss_cls"], second["loss_cls"])
    assert not torch.equal(first["loss_image_label"], second["loss_image_label"])


def test_weight_transfer_distils_the_features_and_classifies_by_the_generated_weights(build):
    model = build("fpn", 5, *METHODS["weight transfer"])
    losses = losses_of(model, make_batch(BATCHES["everything"]()))
    classifier = model.roi_heads.box_predictor.cls_score
    (losses["loss_distill_l1"] + losses["loss_distill_relation"]).backward(retain_graph=True)
    assert all(p.grad is None or not p.grad.any() for p in classifier.parameters())
    assert model.roi_heads.box_head.fc1.weight.grad.any()
    losses["loss_image_label"].backward()
    trained = [p for p in classifier.parameters() if p.requires_grad]
    assert all(p.grad.any() for p in trained)
    assert classifier.projection.frozen.weight.grad is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_on_a_cpu(build, kind, method):
    """The public code converts to CUDA's half type by name and cannot run on a CPU at all."""
    model = build(kind, 5, *METHODS[method], "MODEL.MASK_ON", False)
    for part in (model.backbone, model.proposal_generator):
        part.forward = torch.autocast("cpu", enabled=False)(part.forward)
    for what in ("everything", "labels and regions", "empty"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = losses_of(model, make_batch(BATCHES[what]()))
            sum(losses.values()).backward()
        for name, value in losses.items():
            assert torch.isfinite(value), (what, name)
            assert not is_extra(name) or value.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_labels_cost_rows_not_passes_or_loops(build, kind):
    """The public code loops over images and labels; here no module runs more often for more."""
    model = build(kind, 5, *RKD)
    calls = []
    for name, module in model.roi_heads.named_modules():
        module.register_forward_hook(lambda m, a, o, name=name: calls.append(name))
    counts = []
    for labels in ([], [1], [k % 5 for k in range(40)]):
        calls.clear()
        losses_of(model, make_batch([image(**TWO, labels=labels), image(**ONE)]))
        counts.append(sorted(calls))
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize("method", METHODS)
def test_one_class_and_equal_regions(build, method):
    model = build("fpn", 5, *METHODS[method])
    vocabulary = make_vocabulary(1)
    set_vocabulary(model, vocabulary, make_embeddings(vocabulary))
    targets = image(boxes=ONE["boxes"], classes=[0], regions=4, labels=[0, 0])
    is_region = targets.supervision == REGION
    targets.gt_boxes.tensor[is_region] = torch.tensor([20.0, 20, 60, 60])
    targets.teacher_embedding[is_region] = torch.ones(DIM).half()
    losses = losses_of(model, make_batch([targets]))
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_federated_sampling_never_draws_held_out_classes(build):
    """In the public code a class of frequency zero can be drawn once the others run out."""
    model = build("fpn", 5, *RKD, "MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True,
                  "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", 5)  # fmt: skip
    vocabulary = make_vocabulary(5, novel=(2, 4))
    set_vocabulary(model, vocabulary, make_embeddings(vocabulary))
    predictor = model.roi_heads.box_predictor
    assert predictor.sampling_weight[[2, 4]].tolist() == [0, 0]
    for seed in range(20):
        torch.manual_seed(seed)
        mask = federated_class_mask(torch.tensor([1, 5]), predictor.sampling_weight, 5)
        assert mask.tolist() == [1, 1, 0, 1, 0]
    losses = losses_of(model, make_batch([image(**TWO, labels=[4])]))
    assert losses["loss_cls"] > 0 and losses["loss_image_label"] > 0


def test_accuracy_on_pseudo_boxes_is_logged(build):
    model = build("fpn", 5, *RKD).train()
    with EventStorage() as storage:
        model(make_batch(BATCHES["everything"]()))
        assert 0 <= storage.latest()["image_label/accuracy"][0] <= 1


def test_labels_teach_nothing_without_a_weight(build):
    model = build("fpn", 5, *RKD, "MODEL.IMAGE_LABELS.WEIGHT", 0.0)
    assert [task.kind for task in model.roi_heads.tasks] == [REGION]
    losses = losses_of(model, make_batch(BATCHES["everything"]()))
    assert "loss_image_label" not in losses


BAD = {
    "USE_SIGMOID_CE": ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", False),
    "MODEL.IMAGE_LABELS.WEIGHT": ("MODEL.IMAGE_LABELS.WEIGHT", -0.1),
    "MODEL.REGION_DISTILLATION.RELATION ": ("MODEL.REGION_DISTILLATION.RELATION", "l2"),
    "RELATION_WEIGHT": ("MODEL.REGION_DISTILLATION.RELATION_WEIGHT", -1.0),
    "MODEL.OPEN_VOCAB.PROJECTION ": ("MODEL.OPEN_VOCAB.PROJECTION", "mlp"),
}


@pytest.mark.parametrize("key", BAD)
def test_bad_settings_are_named(build, key):
    with pytest.raises(OVDError, match=key):
        build("fpn", 5, *RKD, *BAD[key])


def test_embeddings_published_as_numpy_load_into_the_heads(build, tmp_path):
    """Detic's and object-centric-ovd's files: (K, D), fp16, not normalised, without names."""
    import numpy as np

    values = (10 * np.random.default_rng(3).standard_normal((5, DIM))).astype(np.float16)
    np.save(tmp_path / "clip.npy", values)
    model = build("fpn", 5, *RKD, "MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS", str(tmp_path / "clip.npy"))
    rows = torch.from_numpy(values.astype(np.float32))
    expected = rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(
        model.roi_heads.box_predictor.cls_score.class_embeddings, expected, rtol=1e-4, atol=1e-5
    )
    losses = losses_of(model, make_batch(BATCHES["everything"]()))
    assert all(torch.isfinite(value) for value in losses.values())


def test_a_checkpoints_classes_do_not_replace_the_configured_ones(build, tmp_path):
    """The public checkpoints hold their class embeddings, which overwrite those of the config."""
    from ovd_d2.checkpoint.atomic_checkpointer import AtomicCheckpointer

    AtomicCheckpointer(build("fpn", 7, *RKD), str(tmp_path)).save("seven")
    model = build("fpn", 5, *RKD)
    before = model.roi_heads.box_predictor.cls_score.class_embeddings.clone()
    AtomicCheckpointer(model).load(str(tmp_path / "seven.pth"))
    assert torch.equal(model.roi_heads.box_predictor.cls_score.class_embeddings, before)
    assert model.roi_heads.num_classes == 5
