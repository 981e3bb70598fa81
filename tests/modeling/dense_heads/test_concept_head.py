"""DetCLIP's head: its outputs layer by layer, its first values, and where gradients go."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

from ovd_d2.losses import concept_focal_loss
from ovd_d2.modeling.dense_heads import ConceptHead

C, D = 8, 6
SIZES = [(5, 7), (3, 4), (1, 2)]
ANCHORS = [height * width for height, width in SIZES]


def small_head(seed=0, **arguments):
    torch.manual_seed(seed)
    arguments = {"num_convs": 2, "norm_groups": 4, "num_levels": 3, **arguments}
    return ConceptHead(channels=C, embed_dim=D, **arguments)


def randomised(head):
    """Every parameter away from its first value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.3
    return head


def pyramid(images=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(images, C, *size, generator=generator).to(dtype) for size in SIZES]


def plain_branch(branch, x):
    for convolution, norm, _ in zip(branch[0::3], branch[1::3], branch[2::3]):
        x = F.conv2d(x, convolution.weight, padding=1)
        x = F.group_norm(x, 4, norm.weight, norm.bias).clamp(min=0)
    return x


def plain_start(start, x, regression):
    sampling = F.conv2d(regression, start.sampling.weight, start.sampling.bias, padding=1)
    factors = 1 / (1 + (-sampling[:, 18:]).exp())
    y = deform_conv2d(x, sampling[:, :18], start.weight, start.bias, padding=1, mask=factors)
    return F.group_norm(y, 4, start.norm.weight, start.norm.bias).clamp(min=0)


def plain_outputs(head, features):
    """Location by location, from finest to coarsest, row by row."""
    rows = {"regions": [], "box_deltas": [], "centerness": [], "quality": []}
    for level, x in enumerate(features):
        regression = plain_branch(head.regression, x)
        start = head.deformable_start
        y = x if start is None else plain_start(start, x, regression)
        embedding = head.embedding(plain_branch(head.classification, y))
        deltas = head.box_deltas(regression) * head.level_scales[level]
        for row in range(x.shape[2]):
            for column in range(x.shape[3]):
                region = embedding[:, :, row, column]
                if head.normalize:
                    region = region / region.norm(dim=1, keepdim=True)
                rows["regions"].append(region * head.log_scale.exp())
                rows["box_deltas"].append(deltas[:, :, row, column])
                rows["centerness"].append(head.centerness(regression)[:, 0, row, column])
                if head.quality is not None:
                    rows["quality"].append(head.quality(regression)[:, 0, row, column])
    return {name: torch.stack(values, dim=1) for name, values in rows.items() if values}


@pytest.mark.parametrize("deformable", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("quality", [True, False])
def test_outputs_and_gradients_equal_the_definition(monkeypatch, deformable, normalize, quality):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    head = small_head(deformable=deformable, normalize=normalize, quality=quality,
                      initial_scale=3.0)  # fmt: skip
    head = randomised(head).double()
    features = pyramid(dtype=torch.float64)
    found, wanted = head(features), plain_outputs(head, features)
    assert (found.quality is not None) == quality
    total, plain_total = 0.0, 0.0
    for name, values in wanted.items():
        torch.testing.assert_close(getattr(found, name), values, rtol=1e-9, atol=1e-9, msg=name)
        weights = torch.randn(values.shape, dtype=torch.float64)
        total = total + (getattr(found, name) * weights).sum()
        plain_total = plain_total + (values * weights).sum()
    used = [p for name, p in head.named_parameters() if name != "bias"]
    for one, other in zip(torch.autograd.grad(total, used), torch.autograd.grad(plain_total, used)):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_shapes_and_types():
    outputs = small_head(quality=True)(pyramid())
    A = sum(ANCHORS)
    assert outputs.regions.shape == (2, A, D) and outputs.box_deltas.shape == (2, A, 4)
    assert outputs.centerness.shape == outputs.quality.shape == (2, A)
    assert small_head()(pyramid()).quality is None
    one = small_head(num_levels=1)([torch.randn(1, C, 1, 1)])
    assert one.regions.shape == (1, 1, D)
    with pytest.raises(ValueError):
        small_head(num_levels=2)(pyramid())


def test_first_values():
    head = small_head(positive_prior=0.02, initial_scale=5.0, deformable=True)
    assert head.bias.sigmoid().item() == pytest.approx(0.02)
    assert head.log_scale.exp().item() == pytest.approx(5.0)
    assert head.log_scale.shape == head.bias.shape == ()
    start, x = head.deformable_start, pyramid()[0]
    plain = F.conv2d(x, start.weight, padding=1) / 2  # no offset, factors of sigmoid(0)
    found = start(x, torch.randn(x.shape))
    torch.testing.assert_close(found, F.group_norm(plain, 4).clamp(min=0), rtol=1e-4, atol=1e-4)
    assert (small_head()(pyramid()).regions @ F.normalize(torch.randn(D), dim=0)).abs().max() < 1


def test_regions_of_norm_one_have_the_scale_as_their_norm():
    regions = randomised(small_head(normalize=True))(pyramid()).regions
    norms = regions.norm(dim=2)
    torch.testing.assert_close(norms, norms[0, 0].expand_as(norms))
    assert regions[0, 0].dot(regions[0, 1]) < norms[0, 0] ** 2


@pytest.mark.parametrize("deformable", [True, False])
def test_the_alignment_loss_reaches_the_regression_branch_by_the_deformable_start(deformable):
    def alignment_gradients(head):
        outputs, concepts = head(pyramid()), F.normalize(torch.randn(4, D), dim=1)
        columns = tuple(torch.tensor([0, place]) for place in (0, 1, 2))
        concept_focal_loss(outputs.regions, concepts, head.bias, columns).backward()
        return {name for name, p in head.named_parameters() if p.grad is not None and p.grad.any()}

    reached = alignment_gradients(randomised(small_head(deformable=deformable)))
    assert {"classification.0.weight", "embedding.weight", "log_scale", "bias"} <= reached
    assert ("regression.0.weight" in reached) == deformable
    assert not reached & {"box_deltas.weight", "centerness.weight", "level_scales"}
    fresh = alignment_gradients(small_head(deformable=deformable))  # its sampling learns first
    assert ("deformable_start.sampling.weight" in fresh) == deformable


@pytest.mark.parametrize("deformable", [True, False])
def test_bfloat16_on_a_cpu(deformable):
    head = randomised(small_head(deformable=deformable, quality=True))
    wanted = head(pyramid())
    with torch.autocast("cpu", torch.bfloat16):
        found = head(pyramid())
    for name in ("regions", "box_deltas", "centerness", "quality"):
        value = getattr(found, name)
        assert value.dtype == torch.float32
        difference = (value - getattr(wanted, name)).norm() / getattr(wanted, name).norm()
        assert 0 < difference < 0.05, name
    (found.regions.sum() + found.box_deltas.sum()).backward()
    assert all(p.grad.isfinite().all() for p in head.regression.parameters())


def test_levels_share_their_weights_but_not_the_factor_on_deltas():
    head = randomised(small_head())
    same = [torch.ones(1, C, 4, 4)] * 3
    parts = head(same).box_deltas.split(16, dim=1)
    scales = head.level_scales.tolist()
    torch.testing.assert_close(parts[0] / scales[0], parts[2] / scales[2])
    assert not torch.allclose(parts[0], parts[2])
