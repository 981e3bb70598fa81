"""MAVL learns: what its losses are of, what it refuses, one image by heart."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from small_glip import small_text_backbone
from small_mavl import GivenMaps, mavl_of
from torchvision.ops import box_iou

from ovd_d2.errors import OVDError
from ovd_d2.modeling.hungarian_matching import HungarianMatcher
from ovd_d2.modeling.set_criterion import SetCriterion
from ovd_d2.structures import TokenSpans

CAT = TokenSpans("a cat beside a red mug", (((2, 5),), ((15, 22),)))
DOGS = TokenSpans("two dogs", (((4, 8),),))


def maps(seed=0, images=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, 8, 12 // 2**k, 16 // 2**k, generator=generator) for k in (0, 1)]


def small_mavl(language=True, **more):
    torch.manual_seed(0)
    text = small_text_backbone() if language else None
    model = mavl_of(GivenMaps(maps()), text_backbone=text, dim=32, hidden=32, object_queries=12,
                    norm_groups=8, layers=1, **more)  # fmt: skip
    return model.train()


def sample(boxes, size=(96, 128), **more):
    rows = Instances(size)
    rows.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    rows.gt_phrases = torch.arange(len(boxes)) % 2
    return {"image": torch.zeros(3, *size, dtype=torch.uint8), "instances": rows, **more}


def two_samples():
    first = sample([[0, 0, 64, 48], [32, 24, 96, 96]], caption=CAT)
    second = sample([[16, 8, 48, 40]], size=(64, 64), caption=DOGS)  # padded by the first
    return [first, second]


def test_the_losses_are_of_relative_boxes_and_the_tokens_of_phrases():
    model = small_mavl()
    torch.manual_seed(1)  # dropout
    found = model(two_samples())
    boxes = [
        torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.5, 0.625, 0.5, 0.75]]),
        torch.tensor([[0.5, 0.375, 0.5, 0.5]]),  # of its own 64 x 64 pixels
    ]
    # [CLS] a cat beside a red mug [SEP]; [CLS] two dogs [SEP]
    tokens = [torch.zeros(2, 10, dtype=torch.bool), torch.zeros(1, 10, dtype=torch.bool)]
    tokens[0][0, 2] = tokens[0][1, 5] = tokens[0][1, 6] = tokens[1][0, 2] = True
    torch.manual_seed(1)
    image = model.read_images([s["image"] for s in two_samples()])
    words = model.text_backbone.tokenizer([CAT.caption, DOGS.caption])
    outputs = model.predict_queries(image, model.read_texts(words))
    wanted = SetCriterion(matcher=HungarianMatcher())(outputs, tokens, boxes)
    assert len(wanted) == 3 * 6  # a fusion of six layers
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("language", [True, False])
def test_every_parameter_has_a_gradient_with_and_without_boxes(language):
    for boxes in ([[0, 0, 64, 48]], []):
        model = small_mavl(language)
        losses = model([sample(boxes, caption=CAT)] * 2)
        sum(losses.values()).backward()
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == []
        assert all(torch.isfinite(loss) for loss in losses.values())


def test_without_language_the_caption_does_not_matter():
    model = small_mavl(language=False)
    given = two_samples()
    plain = [{k: v for k, v in one.items() if k != "caption"} for one in given]
    torch.manual_seed(1)  # dropout
    wanted = model(given)
    torch.manual_seed(1)
    found = model(plain)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=name)
    assert model.criterion.kind == "focal"


def test_what_is_refused():
    model = small_mavl()
    plain = sample([[0, 0, 64, 48]], file_name="x.jpg")
    with pytest.raises(OVDError, match="x.jpg has no caption.* INPUT.MAPPER GroundingMapper"):
        model([plain, plain])
    strange = {**plain, "caption": CAT}
    strange["instances"].remove("gt_phrases")
    with pytest.raises(OVDError, match="of which phrase they are"):
        model([strange, strange])
    with pytest.raises(OVDError, match="needs one whose phrases are marked"):
        model([{**plain, "caption": "a cat"}] * 2)


@pytest.mark.parametrize("language", [pytest.param(True, marks=pytest.mark.slow), False])
def test_one_image_by_heart(language):
    """After some steps its two objects are the two best boxes, and score above the rest."""
    torch.manual_seed(0)
    model = small_mavl(language)
    given = two_samples()[:1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = None
    for _ in range(80):
        losses = model(given)
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        first = first or loss.item()
    assert loss.item() < first / 2
    model.eval()
    asked = given if language else [{k: v for k, v in given[0].items() if k != "caption"}]
    found = model(asked)[0]["instances"]
    wanted = given[0]["instances"].gt_boxes.tensor
    overlap = box_iou(wanted, found.pred_boxes.tensor[:2])
    assert (overlap.max(dim=1).values > 0.7).all(), overlap
    if language:
        assert sorted(found.pred_classes[:2].tolist()) == [0, 1]
