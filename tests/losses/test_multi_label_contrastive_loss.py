"""GroupViT's two losses: the public code's numbers, the paper's equations, two processes."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from ovd_d2.errors import OVDError
from ovd_d2.layers.gather_rows import gather_rows
from ovd_d2.losses import multi_label_contrastive_loss, symmetric_contrastive_loss

sys.path.append(str(Path(__file__).parents[1] / "modeling"))

from groupvit_names import below, close, golden
from two_processes import in_two_processes

FILE = golden("contrastive")
OUTPUTS, GRADIENTS = 2e-5, 1e-4
INPUTS = ("image_x", "text_x", "text_multi_label_x")


def inputs(rows=slice(None), texts=3):
    """Leaves, as they leave the projectors."""
    values = [FILE[f"in.{name}"][rows] for name in INPUTS]
    values[2] = values[2][:, :texts]
    return [value.clone().requires_grad_() for value in values]


def scale_of(log_scale):
    """As the model has it."""
    return log_scale.exp().clamp(max=100.0)


def both(leaves, log_scales, rank=0):
    """The two losses of a process."""
    images, texts, labels = (normalize(leaf, dim=-1) for leaf in leaves)
    offset = rank * len(images)
    everywhere = gather_rows(images)
    contrastive = symmetric_contrastive_loss(
        images, texts, scale_of(log_scales[0]), all_image_embeddings=everywhere,
        all_text_embeddings=gather_rows(texts), offset=offset,
    )  # fmt: skip
    multi_label = multi_label_contrastive_loss(
        images, labels, scale_of(log_scales[1]), all_image_embeddings=everywhere,
        all_text_embeddings=gather_rows(labels), offset=offset,
    )  # fmt: skip
    return contrastive, multi_label


@pytest.mark.parametrize("case", ["init", "other", "clamped", "shared", "k1"])
def test_both_losses_give_the_golden_numbers(case):
    wanted = below(FILE, f"{case}.")
    second = wanted.get("multi_label_logit_scale", wanted["logit_scale"])
    for place, loss in enumerate(("loss", "multi_label_loss")):
        leaves = inputs(texts=1 if case == "k1" else 3)
        logs = [s.clone().requires_grad_() for s in (wanted["logit_scale"], second)]
        value = both(leaves, logs)[place]
        value.backward()
        close(value, wanted[loss], OUTPUTS)
        prefix = "ml." if place else ""
        name = "multi_label_logit_scale" if place and case != "shared" else "logit_scale"
        close(logs[place].grad, wanted[f"{prefix}grad_{name}"], GRADIENTS)
        assert (logs[place].grad == 0) == (case == "clamped")
        close(leaves[0].grad, wanted[f"{prefix}grad_image_x"], GRADIENTS)
        texts = "text_multi_label_x" if place else "text_x"
        close(leaves[1 + place].grad, wanted[f"{prefix}grad_{texts}"], GRADIENTS)


def of_rank(rank):
    """Losses, gradients of this rank's features and of the scales."""
    leaves = inputs(slice(2 * rank, 2 * rank + 2))
    logs = [
        FILE[f"param_init.{n}logit_scale"].clone().requires_grad_() for n in ("", "multi_label_")
    ]
    contrastive, multi_label = both(leaves, logs, rank)
    (contrastive + multi_label).backward()
    return {
        "loss": contrastive.detach(),
        "multi_label_loss": multi_label.detach(),
        **{f"grad_{name}": leaf.grad for name, leaf in zip(INPUTS, leaves)},
        "grad_logit_scale": logs[0].grad,
        "grad_multi_label_logit_scale": logs[1].grad,
    }


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_give_the_golden_numbers(tmp_path):
    ranks = in_two_processes(of_rank, tmp_path)
    for rank, found in enumerate(ranks):
        wanted = below(FILE, f"two_ranks.rank{rank}.")
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            close(found[name], value, GRADIENTS if "grad" in name else OUTPUTS, name)
    whole = below(FILE, "two_ranks.single_process.")
    for name in ("image_x", "text_x", "text_multi_label_x"):  # a rank's belong to the sum
        found = torch.cat([rank[f"grad_{name}"] for rank in ranks]) / 2
        close(found, whole[f"grad_{name}"], GRADIENTS, name)
    for name in ("loss", "multi_label_loss", "grad_logit_scale", "grad_multi_label_logit_scale"):
        close((ranks[0][name] + ranks[1][name]) / 2, whole[name], GRADIENTS, name)


def plain(form, images, texts, scale):
    """The equations, pair by pair."""
    count, per_image = texts.shape[:2]
    exp = [[[math.e ** (scale * (images[i] @ texts[j, k])) for k in range(per_image)]
            for j in range(count)] for i in range(count)]  # fmt: skip
    to_texts, to_images = 0.0, 0.0
    for i in range(count):
        everything = sum(sum(row) for row in exp[i])
        own = [one / everything for one in exp[i][i]]
        if form == "log_sum":
            to_texts -= torch.log(sum(own)) / count
        else:
            to_texts -= sum(torch.log(one) for one in own) / per_image / count
        for k in range(per_image):
            share = exp[i][i][k] / sum(exp[j][i][k] for j in range(count))
            to_images -= torch.log(share) / (count * per_image)
    return 0.5 * (to_texts + to_images)


@pytest.mark.parametrize("form", ["soft_targets", "log_sum"])
@pytest.mark.parametrize("texts", [1, 3])
def test_forms_are_those_of_plain_loops(form, texts):
    found, wanted = [], []
    for function, results in ((multi_label_contrastive_loss, found), (plain, wanted)):
        images, _, labels = (
            leaf.detach().double().requires_grad_() for leaf in inputs(texts=texts)
        )
        given = normalize(images, dim=-1), normalize(labels, dim=-1)
        value = plain(form, *given, 5.0) if function is plain else function(*given, 5.0, form=form)
        value.backward()
        results += [value.detach(), images.grad, labels.grad]
    for ours, theirs in zip(found, wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_with_one_text_the_forms_are_one_and_a_repeated_text_is_allowed():
    images, _, labels = (normalize(leaf.detach(), dim=-1) for leaf in inputs(texts=1))
    one = multi_label_contrastive_loss(images, labels, 7.0, form="log_sum")
    torch.testing.assert_close(one, multi_label_contrastive_loss(images, labels, 7.0))
    twice = labels.expand(-1, 2, -1)
    both_forms = [multi_label_contrastive_loss(images, twice, 7.0, form=form)
                  for form in ("soft_targets", "log_sum")]  # fmt: skip
    torch.testing.assert_close(both_forms[0] - both_forms[1], torch.tensor(math.log(2) / 2))


def test_no_image_and_an_unknown_form():
    images = torch.zeros(0, 4, requires_grad=True)
    value = multi_label_contrastive_loss(images, torch.zeros(0, 3, 4), 1.0)
    value.backward()
    assert value == 0 and images.grad is not None
    with pytest.raises(OVDError, match="soft_targets or log_sum"):
        multi_label_contrastive_loss(images, torch.zeros(0, 3, 4), 1.0, form="sum")
