"""A task of one's own, registered from outside, beside those of the package."""

import pytest
import torch
from detectron2.config import configurable
from small_detectors import DIM, KINDS, make_batch, training_losses
from test_region_distillation import DISTIL, METHODS, two_images, with_regions

from ovd_d2.errors import OVDError
from ovd_d2.modeling.roi_heads import REGION_TASK_REGISTRY, RegionDistiller, RegionTask
from ovd_d2.structures import Supervision


class Guess(RegionTask):
    """Guesses the teacher's embedding by a layer of its own; counts what it has seen."""

    kind = Supervision.TEACHER_REGION

    @configurable
    def __init__(self, *, width):
        super().__init__()
        self.layer = torch.nn.Linear(width, DIM)
        self.seen = []

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {"width": input_shape.channels}

    def losses(self, predictor, features, rows):
        assert predictor.vocabulary.names[0] == "thing 0"
        self.seen.append([len(of_image) for of_image in rows])
        wanted = [of_image.teacher_embedding.float() for of_image in rows if len(of_image)]
        wanted = torch.cat([features.new_zeros(0, DIM), *wanted])
        guessed = self.layer(features)
        return {"loss_guess": (guessed - wanted).square().sum() / max(len(guessed), 1)}


class Foreground(RegionTask):
    """Tells objects from background by a head of its own on the sampled proposals."""

    kind, has_head = Supervision.BOX, True

    def __init__(self, cfg, input_shape):
        super().__init__()
        channels, side, other = input_shape.channels, input_shape.height, input_shape.width
        self.head = torch.nn.Linear(channels * side * other, 1)
        self.num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES

    def losses(self, predictor, features, rows):
        logits = self.head(features.flatten(1))[:, 0]
        classes = torch.cat([of_image.gt_classes for of_image in rows])
        is_object = (classes < predictor.num_classes).to(logits)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, is_object)
        return {"loss_foreground": loss}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for task in (Guess, Foreground):
        monkeypatch.setitem(REGION_TASK_REGISTRY._obj_map, task.__name__, task)


TOYS = ("MODEL.OPEN_VOCAB.REGION_TASKS", ["Guess", "Foreground"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["plain", "vild", "ensemble"])
def test_tasks_of_ones_own_train_beside_those_of_the_package(build, kind, method):
    opts = {"plain": (), "vild": DISTIL, "ensemble": METHODS["ensemble"]}[method]
    model, without = build(kind, 5, *opts, *TOYS), build(kind, 5, *opts)
    assert model.roi_heads.needs_teacher_regions
    with torch.no_grad():
        for name, value in without.state_dict().items():
            model.state_dict()[name].copy_(value)
    batch = make_batch([with_regions(t, n) for t, n in zip(two_images(), (3, 2))])
    losses, plain = training_losses(model, batch), training_losses(without, batch)
    stages = [f"_stage{k}" for k in range(3)] if kind == "cascade" else [""]
    own = {"loss_foreground", *(f"loss_guess{stage}" for stage in stages)}
    assert losses.keys() - plain.keys() == own
    assert all(torch.isfinite(losses[name]) and losses[name] > 0 for name in own)
    for name in plain:  # up to rounding: other numbers of rows in one matrix product
        torch.testing.assert_close(losses[name], plain[name], rtol=1e-4, atol=1e-6, msg=name)
    assert model.roi_heads.region_tasks[0].seen == [[3, 2]] * len(stages)

    sum(losses.values()).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.optim.SGD(model.parameters(), 0.1).step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {f"roi_heads.region_tasks.{part}.weight" for part in ("0.layer", "1.head")} <= moved
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_rows_reaches_every_parameter(build, kind):
    model = build(kind, 5, *TOYS)
    losses = training_losses(model, make_batch(two_images()))
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_lists_tasks_keep_their_names_whatever_else_is_learned(build):
    plain, rich = build("fpn", 5, *TOYS), build("fpn", 5, *DISTIL, *TOYS)
    assert plain.state_dict().keys() == rich.state_dict().keys()
    assert [type(task) for task in rich.roi_heads.tasks] == [Guess, Foreground, RegionDistiller]


def test_a_head_that_is_fixed_asks_for_nothing(build):
    tasks = ("MODEL.OPEN_VOCAB.REGION_TASKS", ["Foreground"])
    model = build("fpn", 5, *METHODS["ensemble"], *tasks)
    heads = model.roi_heads
    heads.image_branch.requires_grad_(False)
    assert not heads.needs_teacher_regions
    assert [type(task) for task in heads.tasks] == [Foreground]
    heads.region_tasks[0].requires_grad_(False)
    assert heads.tasks == []
    losses = training_losses(model, make_batch(two_images()))
    assert not any("distill" in name for name in losses)
    heads.image_branch.requires_grad_(True)
    assert heads.needs_teacher_regions


def test_unknown_tasks_and_losses_of_one_name_are_named(build):
    with pytest.raises(OVDError, match=r"REGION_TASKS names 'Gues'; .*: Foreground, Guess\."):
        build("fpn", 5, "MODEL.OPEN_VOCAB.REGION_TASKS", ["Gues"])
    model = build("fpn", 5, "MODEL.OPEN_VOCAB.REGION_TASKS", ["Guess", "Guess"])
    with pytest.raises(OVDError, match=r"loss_guess.*Guess"):
        training_losses(model, make_batch(two_images()))
