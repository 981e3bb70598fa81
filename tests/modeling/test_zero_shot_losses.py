"""Training of Grounding DINO and its kin: against the loss of transformers itself."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from tiny_detectors import SAVE

from ovd_d2.modeling import HuggingFaceDetector

pytest.importorskip("transformers")
NAMES = ["cat", "red dog", "zebra crossing", "mug"]


@pytest.fixture(scope="module", params=["grounding-dino", "mm-grounding-dino"])
def model(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    SAVE[request.param](folder, auxiliary_loss=True)
    return HuggingFaceDetector(
        model=str(folder), vocabulary=NAMES, max_negatives=4, all_negatives_probability=1.0
    ).eval()  # without dropout


def sample(boxes, classes, height=64, width=96):
    target = Instances((height, width))
    target.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    target.gt_classes = torch.tensor(classes, dtype=torch.int64)
    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": pixels, "instances": target, "height": height, "width": width}


def batch():
    return [
        sample([[10, 10, 40, 50], [50, 5, 90, 60], [1, 2, 30, 31]], [1, 3, 1]),
        sample([[20, 0, 60, 90]], [0], 96, 80),
        sample([[5, 5, 70, 40], [0, 20, 20, 60]], [2, 1]),
    ]


def published(model, one, prompt):
    """The loss of transformers for one image and a caption of all names."""
    processor, target = model.family.processor, one["instances"]
    height, width = target.image_size
    inputs = processor(
        images=one["image"], text=prompt.spans.caption, return_tensors="pt", do_resize=False
    )
    names = [prompt.spans.phrases()[k] for k in range(len(prompt.spans))]
    boxes = target.gt_boxes.tensor
    centres = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)
    labels = {
        "class_labels": torch.tensor([names.index(NAMES[k]) for k in target.gt_classes]),
        "boxes": centres / torch.tensor([width, height, width, height]),
    }
    return model.family.model(**inputs, labels=[labels]).loss


def test_equals_the_loss_of_transformers(model, monkeypatch):
    prompts = []
    make = model.family.training_prompt

    def remembered(*args, **options):
        made = make(*args, **options)
        prompts.append(made[0])
        return made

    monkeypatch.setattr(model.family, "training_prompt", remembered)
    data = batch()
    for one in data:
        found = sum(model.losses([one]).values())
        wanted = published(model, one, prompts[-1])
        assert len(prompts[-1].spans) == 4
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)
        (mine,) = torch.autograd.grad(found, model.family.model.model.text_projection.weight)
        wanted = published(model, one, prompts[-1])
        (theirs,) = torch.autograd.grad(wanted, model.family.model.model.text_projection.weight)
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-4)
    prompts.clear()
    losses = model.losses(data)
    apart = [published(model, one, prompt) for one, prompt in zip(data, prompts)]
    counts = [3, 1, 2]
    wanted = sum(loss * count for loss, count in zip(apart, counts)) / sum(counts)
    torch.testing.assert_close(sum(losses.values()), wanted, atol=1e-4, rtol=1e-5)
    assert {"loss_ce", "loss_bbox", "loss_giou", "loss_ce_0"} <= set(losses)


def test_every_parameter_gets_a_gradient_and_images_may_be_empty(model):
    model.train()
    data = [*batch(), sample([], [])]
    losses = model(data)
    assert all(torch.isfinite(value) for value in losses.values())
    model.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    model.eval()
    assert missing == []
    empty = model.losses([sample([], [])])
    assert losses.keys() == empty.keys()
    assert empty["loss_bbox"] == 0 and empty["loss_ce"] > 0
