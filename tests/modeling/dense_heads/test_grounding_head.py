"""The grounding head against the public code's numbers; padding and pairs of images and prompts
change nothing."""

import dataclasses

import glip_names
import pytest
import torch
from small_grounding_heads import STRIDES, anchors_of, flat, golden, randomised, small_head
from torch import nn

from ovd_d2.errors import OVDError
from ovd_d2.modeling.dense_heads import Matches
from ovd_d2.modeling.dense_heads.grounding_outputs import LOGIT_LIMIT

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
ALIGNMENT, TOWER = golden("alignment"), golden("vldyhead_tower")


def same(one, other):
    """Equal but for the order of sums."""
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


class Untouched(nn.Module):
    """A tower that changes nothing."""

    fuses = False

    def forward(self, features, text, text_mask, *, every_pair=False):
        return features, text


def of_levels(arrays, name):
    return torch.cat([arrays[f"{name}{level}"] for level in range(5)], dim=1)


def golden_head(weights, **arguments):
    head = small_head(**arguments)
    head.load_state_dict(glip_names.public_to_ours(weights), strict=False)
    return head


@pytest.mark.parametrize("case", ["fused", "shallow"])
def test_alignment_equals_the_public_code(case):
    head = golden_head(glip_names.starting_with(ALIGNMENT, "w."))
    head.tower = Untouched()
    mask = ALIGNMENT["in.text_mask"].bool()
    text = ALIGNMENT["in.text_hidden"]
    if case == "shallow":  # that code gives padding the vector 0
        text = text * mask[..., None]
    features = [ALIGNMENT[f"in.visual{level}"] for level in range(5)]
    found = head(features, text, mask)
    wanted = of_levels(ALIGNMENT, f"{case}.token_logits")
    torch.testing.assert_close(found.token_logits[:, 0], wanted, **CLOSE)
    torch.testing.assert_close(found.box_deltas[:, 0], flat(ALIGNMENT, "out.bbox_reg"), **CLOSE)
    wanted = flat(ALIGNMENT, "out.centerness")[..., 0]
    torch.testing.assert_close(found.centerness[:, 0], wanted, **CLOSE)
    assert found.usable is None


def test_logits_are_limited():
    head = golden_head(glip_names.starting_with(ALIGNMENT, "w."))
    visual = ALIGNMENT["in.visual0"].flatten(2).transpose(1, 2) * ALIGNMENT["clamp.visual_scale"]
    found = head.alignment(visual, ALIGNMENT["in.text_hidden"])
    torch.testing.assert_close(found, ALIGNMENT["clamp.token_logits0"], rtol=1e-4, atol=1e-3)
    assert found.abs().max() == LOGIT_LIMIT


@pytest.mark.parametrize("case", ["deep", "late"])
@pytest.mark.parametrize("grad", [True, False])
def test_head_equals_the_public_code(case, grad):
    arrays = glip_names.starting_with(TOWER, f"{case}.")
    head = golden_head(glip_names.starting_with(arrays, "w."), fusion=case == "deep")
    mask, text = arrays["in.mask"].bool(), arrays["in.hidden"]
    if case == "late":
        text = text * mask[..., None]
    seen = []
    for block in head.tower.blocks:
        block.register_forward_hook(lambda _, __, result: seen.append(result))
    features = [arrays[f"in.visual{level}"] for level in range(5)]
    with torch.set_grad_enabled(grad):
        found = head(features, text, mask)
    for number, (levels, text, _) in enumerate(seen):
        place = f"tower{3 * number + 2 if case == 'deep' else number}"
        for level in range(5):
            torch.testing.assert_close(levels[level], arrays[f"{place}.visual{level}"], **CLOSE)
        if case == "deep":
            torch.testing.assert_close(text, arrays[f"{place}.text"], **CLOSE)
    wanted = of_levels(arrays, "out.token_logits")
    torch.testing.assert_close(found.token_logits[:, 0], wanted, **CLOSE)
    torch.testing.assert_close(found.box_deltas[:, 0], flat(arrays, "out.bbox_reg"), **CLOSE)
    wanted = flat(arrays, "out.centerness")[..., 0]
    torch.testing.assert_close(found.centerness[:, 0], wanted, **CLOSE)


@pytest.mark.parametrize("case", ["deep", "late"])
def test_every_weight_has_a_place(case):
    weights = glip_names.starting_with(TOWER, f"{case}.w.")
    head = small_head(fusion=case == "deep")
    head.load_state_dict(glip_names.public_to_ours(weights))


def levels_of(height, width, images=1, seed=0, strides=STRIDES):
    """Features of a (height, width) batch."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(images, 8, -(-height // stride), -(-width // stride), generator=generator)
        for stride in strides
    ]


def batched(first, second):
    """Two images in one batch, each padded with noise to the larger size."""
    result = []
    for one, other in zip(first, second):
        shape = [max(a, b) for a, b in zip(one.shape[2:], other.shape[2:])]
        level = torch.randn(2, 8, *shape) * 9
        level[0, :, : one.shape[2], : one.shape[3]] = one[0]
        level[1, :, : other.shape[2], : other.shape[3]] = other[0]
        result.append(level)
    return result


@pytest.mark.parametrize("fusion", [True, False])
@pytest.mark.parametrize("every_pair", [True, False])
def test_an_image_alone_and_in_a_batch_gives_the_same(fusion, every_pair):
    head = randomised(small_head(fusion))
    sizes = [(120, 190), (190, 90)]
    alone = [levels_of(128, 192), levels_of(192, 96, seed=1)]
    text, mask = torch.randn(2, 5, 12), torch.tensor([[1] * 5, [1] * 3 + [0] * 2]).bool()
    with torch.no_grad():
        together = head(batched(*alone), text, mask, sizes, every_pair=every_pair)
    assert together.usable.sum(dim=1).tolist() == [
        sum(level[0, 0].numel() for level in features) for features in alone
    ]
    for image, features in enumerate(alone):
        rows = slice(None) if every_pair else slice(image, image + 1)
        with torch.no_grad():
            single = head(
                features, text[rows], mask[rows], sizes[image : image + 1], every_pair=every_pair
            )
        assert single.usable is None
        inside = together.usable[image]
        for field in ("token_logits", "box_deltas", "centerness"):
            one, other = getattr(together, field)[image], getattr(single, field)[0]
            same(one[:, inside], other)
        assert together.token_logits[image][:, ~inside].eq(-LOGIT_LIMIT).all()


def test_images_of_mixed_sizes_keep_their_places():
    head = randomised(small_head(fusion=False))
    features = levels_of(64, 96, images=3)
    sizes = [(64, 96), (20, 30), (64, 90)]
    text, mask = torch.randn(3, 5, 12), torch.ones(3, 5, dtype=torch.bool)
    with torch.no_grad():
        found = head(features, text, mask, sizes)
        for image, (size, (h, w)) in enumerate(zip(sizes, [(64, 96), (32, 32), (64, 96)])):
            rows = slice(image, image + 1)
            own = [
                level[rows, :, : -(-h // stride), : -(-w // stride)]
                for level, stride in zip(features, STRIDES)
            ]
            single = head(own, text[rows], mask[rows], [size])
            same(found.token_logits[rows][:, :, found.usable[image]], single.token_logits)


def test_losses_of_an_image_alone_and_in_a_batch_are_the_same():
    """The losses of a batch are the sum of its images' losses, weighted by what divides them."""
    head = randomised(small_head())
    sizes = [(120, 190), (190, 90)]
    alone = [levels_of(128, 192), levels_of(192, 96, seed=1)]
    text, mask = torch.randn(2, 5, 12), torch.ones(2, 5, dtype=torch.bool)
    boxes = [torch.tensor([[10.0, 5, 110, 118], [100, 60, 190, 120]]),
             torch.tensor([[20.0, 100, 90, 190]])]  # fmt: skip
    tokens = [torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 1, 0]]).bool(),
              torch.tensor([[0, 0, 1, 0, 0]]).bool()]  # fmt: skip
    features = batched(*alone)
    outputs = head(features, text, mask, sizes)
    anchors = anchors_of(features)
    together = head.losses(anchors, outputs, boxes, tokens, mask)
    matched = Matches(anchors, boxes, usable=outputs.usable).objects >= 0
    sums, numbers = 0.0, []
    for image, own in enumerate(alone):
        rows = slice(image, image + 1)
        outputs = head(own, text[rows], mask[rows])
        found = head.losses(anchors_of(own), outputs, boxes[rows], tokens[rows], mask[rows])
        numbers.append(len(Matches(anchors_of(own), boxes[rows], usable=outputs.usable).images))
        sums = sums + found["loss_token"] * numbers[-1]
    assert matched.sum(dim=1).tolist() == numbers and min(numbers) > 0
    torch.testing.assert_close(together["loss_token"] * sum(numbers), sums)


@pytest.mark.parametrize("fusion", [True, False])
def test_every_pair_equals_a_loop_over_pairs(fusion):
    head = randomised(small_head(fusion))
    features = levels_of(64, 96, images=2)
    text = torch.randn(3, 5, 12)
    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [1] * 4 + [0]]).bool()
    with torch.no_grad():
        found = head(features, text, mask, every_pair=True)
        assert found.token_logits.shape[:2] == (2, 3)
        assert found.box_deltas.shape[1] == found.centerness.shape[1] == (3 if fusion else 1)
        for image in range(2):
            own = [level[image : image + 1] for level in features]
            for prompt in range(3):
                rows = slice(prompt, prompt + 1)
                single = head(own, text[rows], mask[rows])
                at = prompt if fusion else 0
                real = mask[prompt]
                same(found.token_logits[image, prompt][:, real], single.token_logits[0, 0][:, real])
                same(found.box_deltas[image, at], single.box_deltas[0, 0])
                same(found.centerness[image, at], single.centerness[0, 0])


def test_padding_of_the_text_changes_nothing():
    head = randomised(small_head())
    features, text = levels_of(64, 96), torch.randn(1, 5, 12)
    mask = torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad():
        wanted = head(features, text, mask)
        longer = torch.cat([text, torch.randn(1, 4, 12) * 9], dim=1)
        found = head(features, longer, nn.functional.pad(mask, (0, 4)))
    torch.testing.assert_close(found.token_logits[..., :5], wanted.token_logits)
    # Products over longer rows are rounded otherwise, by the processor.
    largest = wanted.box_deltas.abs().max().item()
    torch.testing.assert_close(found.box_deltas, wanted.box_deltas, rtol=0, atol=1e-5 * largest)


def test_one_level():
    head = randomised(small_head(strides=(16,)))
    features = levels_of(64, 96, strides=(16,))
    found = head(features, torch.randn(1, 5, 12), torch.ones(1, 5, dtype=torch.bool))
    assert found.token_logits.shape == (1, 1, 24, 5)


@pytest.mark.parametrize("sizes", [None, [(64, 96), (30, 40)]])
def test_every_parameter_learns_and_recomputing_gives_the_same_gradient(sizes):
    gradients = []
    for recompute in (False, True):
        head = randomised(small_head(dropout=0.0, checkpoint_fusion=recompute)).train()
        features = levels_of(64, 96, images=2)
        mask = torch.ones(2, 5, dtype=torch.bool)
        text = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
        outputs = head(features, text, mask, sizes)
        boxes = [torch.tensor([[10.0, 5, 80, 60]]), torch.zeros(0, 4)]
        tokens = [torch.tensor([[0, 1, 1, 0, 0]]).bool(), torch.zeros(0, 5, dtype=torch.bool)]
        losses = head.losses(anchors_of(features), outputs, boxes, tokens, mask)
        sum(losses.values()).backward()
        gradients.append({name: p.grad for name, p in head.named_parameters()})
    idle = {name for name, gradient in gradients[0].items() if not gradient.any()}
    assert not idle
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_amp_outputs_are_full_precision():
    head = randomised(small_head())
    with torch.autocast("cpu", torch.bfloat16):
        outputs = head(levels_of(64, 96), torch.randn(1, 5, 12), torch.ones(1, 5).bool())
    assert {
        getattr(outputs, field.name).dtype
        for field in dataclasses.fields(outputs)
        if field.name != "usable"
    } == {torch.float32}


def test_initial_values():
    head = small_head()
    for parameter, name in (
        (head.alignment.log_scale, "log_scale"),
        (head.alignment.text_bias, "bias_lang"),
        (head.alignment.bias, "bias0"),
    ):
        torch.testing.assert_close(parameter.data, ALIGNMENT[f"default.{name}"])
    assert head.level_scales.eq(1).all() and not head.box_deltas.bias.any()
    assert head.tower.blocks[0].fusion.visual_scale.eq(0.5).all()


@pytest.mark.parametrize("fusion_init", [0.0, 1.0])
def test_how_much_fusion_counts_at_first(fusion_init):
    tower = small_head(fusion_init=fusion_init, dynamic=False).tower
    features, mask = levels_of(64, 96), torch.ones(1, 7, dtype=torch.bool)
    (one, _), (other, _) = (tower(features, torch.randn(1, 7, 12), mask) for _ in range(2))
    assert torch.equal(one[0], other[0]) == (fusion_init == 0)


def test_wrong_numbers_are_named():
    head = small_head()
    text, mask = torch.randn(3, 5, 12), torch.ones(3, 5).bool()
    with pytest.raises(OVDError, match="every_pair"):
        head(levels_of(64, 96, images=2), text, mask)
    with pytest.raises(OVDError, match="strides"):
        head(levels_of(64, 96)[:3], text, mask, every_pair=True)
