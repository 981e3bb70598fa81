"""Grouping blocks against the public code's numbers, forward and gradient."""

import sys
from pathlib import Path

import pytest
import torch

from ovd_d2.checkpoint.groupvit import grouping_names
from ovd_d2.layers import grouping
from ovd_d2.layers.grouping import Assignment, GroupingBlock

sys.path.append(str(Path(__file__).parents[1] / "modeling"))

from groupvit_names import below, close, golden

FILE = golden("grouping_block")
OUTPUTS, GRADIENTS = 2e-5, 1e-4
# Case of the file -> keywords of the assignment that it names.
VARIANTS = {
    "sum_assign.eval": {"average": False},
    "eps1e-6.eval": {"count_offset": 1e-6},
    "tau0.5.train": {"temperature": 0.5},
    "soft.eval": {"hard": False},
    "soft_gumbel.train": {"hard": False},
    "hard_nogumbel.train": {"gumbel": False},
    "reduction.eval": {},
}


def joined(theirs, names):
    return torch.cat([theirs[name] for name in names]) if len(names) > 1 else theirs[names[0]]


def block(variant="", **keywords):
    """With the weights of the file."""
    weights = {**below(FILE, "w."), **below(FILE, f"var.{variant}.w.")}
    out_width = len(weights["mlp_channels.fc2.bias"])
    made = GroupingBlock(
        24, heads=3, tokens=6, groups=4, out_width=out_width, assignment=Assignment(24, **keywords)
    )
    state = {row.ours[0]: joined(weights, row.nvlabs) for row in grouping_names()}
    if out_width != 24:
        state |= {f"skip.{k}": v for k, v in below(weights, "reduction.").items()}
    made.load_state_dict(state)
    return made


def run(made, mode, monkeypatch, upstream=FILE["in.upstream"]):
    noise = FILE["in.gumbel_noise"][:, 0]
    monkeypatch.setattr(grouping, "gumbel_noise", lambda like: noise)
    tokens = FILE["in.x"].clone().requires_grad_()
    groups = FILE["in.group_tokens"].clone().requires_grad_()
    found = made.train(mode == "train")(tokens, groups)
    (found.segments * upstream).sum().backward()
    return found, tokens, groups


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_block_gives_the_golden_numbers(mode, monkeypatch):
    made = block()
    found, tokens, groups = run(made, mode, monkeypatch)
    wanted = below(FILE, f"{mode}.")
    close(found.segments, wanted["out"], OUTPUTS)
    close(found.assignment, wanted["attn_hard"][:, 0], OUTPUTS)
    close(found.soft, wanted["attn_soft"][:, 0], OUTPUTS)
    close(found.logits, FILE["raw_logits"][:, 0], OUTPUTS)
    counts = wanted["count_per_group"]
    assert torch.equal(found.assignment.sum(dim=2).round().long(), counts) and 0 in counts
    close(tokens.grad, wanted["grad_x"], GRADIENTS)
    close(groups.grad, wanted["grad_group_tokens"], GRADIENTS)
    theirs = below(wanted, "grad.")
    zero = set(wanted["zero_grad_names"].tolist())
    seen = set()
    for row in grouping_names():
        gradient = made.get_parameter(row.ours[0]).grad.chunk(len(row.nvlabs))
        for name, part in zip(row.nvlabs, gradient):
            seen.add(name)
            if name in zero:
                assert part.abs().max() < 1e-4, name
            else:
                close(part, theirs[name], GRADIENTS, name)
    assert seen == set(theirs) | zero


@pytest.mark.parametrize("case", VARIANTS)
def test_its_variants_do_too(case, monkeypatch):
    variant, mode = case.rsplit(".", 1)
    made = block(variant, **VARIANTS[case])
    wanted = below(FILE, f"var.{case}.")
    upstream = FILE.get(f"var.{variant}.in.upstream", FILE["in.upstream"])
    found, tokens, groups = run(made, mode, monkeypatch, upstream)
    close(found.segments, wanted["out"], OUTPUTS)
    close(found.assignment, wanted["attn_hard"][:, 0], OUTPUTS)
    close(tokens.grad, wanted["grad_x"], GRADIENTS)
    close(groups.grad, wanted["grad_group_tokens"], GRADIENTS)
    query = made.assignment.query.weight.grad
    close(query, wanted["grad.assign.q_proj.weight"], GRADIENTS)


def test_noise_is_gumbels_and_in_training_alone():
    torch.manual_seed(0)
    noise = grouping.gumbel_noise(torch.empty(200_000))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.std().item() == pytest.approx(1.2825, abs=0.01)
    made = block()
    given = FILE["in.x"], FILE["in.group_tokens"]
    made.eval()
    assert torch.equal(made(*given).segments, made(*given).segments)
    made.train()
    found = [made(*given).assignment for _ in range(20)]
    assert any(not torch.equal(found[0], other) for other in found[1:])
    assert all(torch.equal(one.round().sum(dim=1), torch.ones(2, 15)) for one in found)


def test_a_group_without_tokens_and_a_single_token():
    made = block().eval()
    found = made(FILE["in.x"][:, :1], FILE["in.group_tokens"])
    assert found.segments.isfinite().all() and found.assignment.shape == (2, 4, 1)
