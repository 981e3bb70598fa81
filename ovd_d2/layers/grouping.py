"""Grouping blocks: tokens of an image merge into fewer segments (Xu et al. 2022, "GroupViT",
section 3.1).

Letters: N images, L tokens, T group tokens, G groups that come out, C width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Grouping(NamedTuple):
    """What a grouping block makes of an image.

    Attributes:
        segments: (N, G, width that comes out).
        assignment: (N, G, L) fp32, the share of each token in each group, as the segments were
            made with it: one-hot over the groups where assignment is hard.
        logits: (N, G, L) fp32, before noise and softmax.
    """

    segments: Tensor
    assignment: Tensor
    logits: Tensor

    @property
    def soft(self) -> Tensor:
        """(N, G, L) fp32, softmax over the groups, without noise in training too: the map that
        segments an image."""
        return self.logits.softmax(dim=1)


def mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    """Linear, GELU, Linear."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


class TokenMixer(nn.Module):
    """(N, T, C) -> (N, G, C): a norm, and an MLP over the tokens (Tolstikhin et al. 2021)."""

    def __init__(self, tokens: int, out: int, width: int) -> None:
        """
        Args:
            tokens: T.
            out: G.
            width: C; the MLP's hidden layer has half of it.
        """
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = mlp(tokens, width // 2, out)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(self.norm(tokens).transpose(1, 2)).transpose(1, 2)


class PreAssignment(nn.Module):
    """Groups (N, G, C) look at tokens (N, L, C), neither being normed before; a norm comes last."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = mlp(width, int(width * mlp_ratio), width)
        self.out_norm = nn.LayerNorm(width)

    def forward(self, groups: Tensor, tokens: Tensor) -> Tensor:
        groups = groups + self.attention(groups, tokens, tokens, need_weights=False)[0]
        return self.out_norm(groups + self.mlp(self.mlp_norm(groups)))


class Assignment(nn.Module):
    """Every token goes to one group, whose segment becomes the mean of its tokens' values.

    One head; softmax over the groups. A hard assignment is one-hot and has the gradient of the
    softmax (straight-through). In training Gumbel noise is added, at test never.
    """

    def __init__(
        self,
        width: int,
        *,
        hard: bool = True,
        gumbel: bool = True,
        temperature: float = 1.0,
        average: bool = True,
        count_offset: float = 1.0,
    ) -> None:
        """
        Args:
            width: C.
            hard: one-hot; False: the softmax itself (14 to 25 mIoU worse in the paper's table 1).
            gumbel: noise in training.
            temperature: of the softmax with noise.
            average: divide the sum of a group's values by its number of tokens + ``count_offset``;
                False: their sum.
            count_offset: see there; the public code's 1 makes small groups smaller.
        """
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.hard = hard
        self.gumbel = gumbel
        self.temperature = temperature
        self.average = average
        self.count_offset = count_offset

    def forward(self, groups: Tensor, tokens: Tensor) -> Grouping:
        """(N, G, C) and (N, L, C) -> the groups with their tokens' values added, and the map."""
        logits = self.query(groups) @ self.key(tokens).transpose(1, 2)
        logits = logits.float() * groups.shape[-1] ** -0.5
        assignment = shares = self._assign(logits)
        if self.average:
            shares = assignment / (assignment.sum(dim=2, keepdim=True) + self.count_offset)
        values = self.value(tokens)
        return Grouping(groups + self.out(shares.to(values) @ values), assignment, logits)

    def _assign(self, logits: Tensor) -> Tensor:
        if self.training and self.gumbel:
            logits = (logits + gumbel_noise(logits)) / self.temperature
        soft = logits.softmax(dim=1)
        if not self.hard:
            return soft
        one_hot = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
        return one_hot - soft.detach() + soft


def gumbel_noise(like: Tensor) -> Tensor:
    """Gumbel(0, 1) in the shape of ``like``."""
    return -torch.empty_like(like).exponential_().log()


class GroupingBlock(nn.Module):
    """T group tokens and L tokens -> G segments."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        tokens: int,
        groups: int,
        out_width: int | None = None,
        mlp_ratio: float = 4.0,
        assignment: Assignment | None = None,
    ) -> None:
        """
        Args:
            width: C.
            heads: of the attention before the assignment.
            tokens: T.
            groups: G.
            out_width: of the segments; None: C. Another one puts a norm and a linear layer without
                bias into the last skip connection.
            mlp_ratio: hidden width of the MLPs over channels, in C.
            assignment: of ``width``; None: as in the paper.
        """
        super().__init__()
        out_width = out_width or width
        self.mixer = TokenMixer(tokens, groups, width)
        self.group_norm = nn.LayerNorm(width)
        self.token_norm = nn.LayerNorm(width)
        self.pre_assignment = PreAssignment(width, heads, mlp_ratio)
        self.assignment = assignment or Assignment(width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = mlp(width, int(width * mlp_ratio), out_width)
        self.skip = (
            nn.Identity()
            if out_width == width
            else nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out_width, bias=False))
        )

    def forward(self, tokens: Tensor, group_tokens: Tensor) -> Grouping:
        """(N, L, C) and (N, T, C) -> G segments."""
        tokens = self.token_norm(tokens)
        groups = self.pre_assignment(self.group_norm(self.mixer(group_tokens)), tokens)
        found = self.assignment(groups, tokens)
        segments = self.skip(found.segments) + self.mlp(self.mlp_norm(found.segments))
        return found._replace(segments=segments)
