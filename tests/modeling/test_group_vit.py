"""GroupViT's image encoder against the public code's numbers."""

import pytest
import torch
from groupvit_names import below, close, golden

from ovd_d2.checkpoint.groupvit import image_encoder_names
from ovd_d2.errors import OVDError
from ovd_d2.modeling.backbone import GroupViTEncoder

OUTPUTS = 2e-5
TINY = {
    "image_size": 32, "patch": 8, "width": 24, "heads": 3, "depths": (2, 1, 1),
    "group_tokens": (6, 3, 0), "output_groups": (6, 3), "drop_path": 0.0,
}  # fmt: skip
UNEQUAL = {**TINY, "depths": (1, 1, 1), "group_tokens": (6, 4, 0), "output_groups": (5, 3)}


def encoder(weights, **keywords):
    """With weights under public names."""
    state = {}
    for row in image_encoder_names(keywords["depths"]):
        names = [name.removeprefix("img_encoder.") for name in row.nvlabs]
        values = [weights[name] for name in names]
        state[row.ours[0].removeprefix("image_encoder.")] = torch.cat(values)
    made = GroupViTEncoder(**keywords)
    made.load_state_dict(state)
    return made.eval()


@pytest.fixture(scope="module")
def unequal():
    return golden("groupvit_unequal_tiny")


@pytest.fixture(scope="module")
def tiny():
    return golden("groupvit_tiny")


def check(found, wanted, pooled="encoder_x", tokens="encoder_feat"):
    close(found.pooled, wanted[pooled], OUTPUTS, pooled)
    close(found.tokens, wanted[tokens], OUTPUTS, tokens)
    for stage, grouping in enumerate(found.groupings, start=1):
        close(grouping.soft, wanted[f"stage{stage}.attn_soft"][:, 0], OUTPUTS)
        close(grouping.assignment, wanted[f"stage{stage}.attn_hard"][:, 0], OUTPUTS)


def test_other_numbers_of_group_tokens_and_groups(unequal):
    found = encoder(below(unequal, "w."), **UNEQUAL)(unequal["in.image"])
    check(found, unequal, "x", "feat")
    soft = [unequal[f"stage{stage}.attn_soft"][:, 0] for stage in (1, 2)]
    close(found.segment_maps().flatten(2), soft[1] @ soft[0], OUTPUTS)
    assert found.segment_maps().shape == (2, 3, 4, 4)
    assert torch.allclose(found.segment_maps().sum(dim=1), torch.ones(2, 4, 4))


def test_every_stage_and_another_size(tiny):
    model = encoder(below(tiny, "w.img_encoder."), **TINY)
    found = model(tiny["in.image"])
    check(found, below(tiny, "eval."))
    for stage, grouping in enumerate(found.groupings, start=1):
        close(grouping.segments, tiny[f"eval.stage{stage}.x"], OUTPUTS)
    for side, grid in (("6x8", (6, 8)), ("8x8", (8, 8))):
        close(model.positions(grid), tiny[f"eval.pos_embed_{side}"], OUTPUTS)
    found = model(tiny["in.image_48x64"])
    assert found.grid == (6, 8)
    check(found, below(tiny, "eval_48x64."))


def test_group_tokens_of_later_stages_start_at_those_before():
    made = GroupViTEncoder(**TINY)
    first, second, last = made.stages
    assert first.group_tokens.abs().min() > 0 and first.group_projector is None
    assert not second.group_tokens.any() and last.group_tokens is last.grouping is None


def test_depth_is_dropped_more_and_more():
    made = GroupViTEncoder(**{**TINY, "drop_path": 0.3})
    rates = [
        getattr(block.drop_path1, "drop_prob", 0.0)
        for stage in made.stages
        for block in stage.blocks
    ]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"group_tokens": (6, 3)}, "3 stages"),
        ({"output_groups": (6,)}, "1 of output_groups"),
        ({"group_tokens": (6, 0, 0)}, "at least 1"),
        ({"group_tokens": (6, 3, 2)}, "the last of group_tokens 0"),
        ({"image_size": 33}, "image_size 33 must be a multiple of patch 8"),
        ({"heads": 5}, "of heads 5"),
    ],
)
def test_numbers_that_do_not_fit_are_named(keys, message):
    with pytest.raises(OVDError, match=message):
        GroupViTEncoder(**{**TINY, **keys})
