"""Phrases of a caption as character spans, and captions as tokens.

Letters: B captions of a batch, L tokens, P phrases (or classes) of one caption.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ovd_d2.errors import OVDError

Span = tuple[int, int]
_LONGEST_SHOWN = 60  # characters of a caption in a message


@dataclass(frozen=True)
class TokenSpans:
    """A caption and its P phrases, each one or more character spans.

    Spans of different phrases may overlap or be equal: two classes of the same name, or a phrase
    inside another. Lists are taken too and become tuples, so that equal phrases are equal keys.

    Attributes:
        caption: the text.
        spans: per phrase its [begin, end) character ranges in ``caption``; () for no phrase.

    Raises:
        OVDError: a phrase without a span, or a span that is empty, reversed or outside the caption.
    """

    caption: str
    spans: tuple[tuple[Span, ...], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.caption, str):
            raise OVDError(f"caption is a {type(self.caption).__name__}; give it as text")
        try:
            spans = tuple(tuple((b, e) for b, e in phrase) for phrase in self.spans)
        except (TypeError, ValueError) as error:
            raise OVDError(
                f"the spans of caption {self.short_caption!r} must be lists of [begin, end) pairs, "
                "one list per phrase"
            ) from error
        for number, phrase in enumerate(spans):
            if problem := span_problem(self.caption, phrase):
                raise OVDError(f"phrase {number} of caption {self.short_caption!r} {problem}")
        object.__setattr__(self, "spans", spans)

    def __len__(self) -> int:
        """P."""
        return len(self.spans)

    @property
    def short_caption(self) -> str:
        """The caption as a message shows it, cut where it is long."""
        text = self.caption
        return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."

    def phrases(self) -> tuple[str, ...]:
        """The words of each of the P phrases; those of several spans joined by a space."""
        return tuple(" ".join(self.caption[b:e] for b, e in phrase) for phrase in self.spans)

    def token_map(self, offsets: Tensor) -> Tensor:
        """Which tokens belong to which phrase.

        A token does if its characters overlap a span of the phrase, whatever token it is (a hyphen,
        an apostrophe, [UNK]). Special tokens and padding have no characters and belong to none;
        a phrase of which the tokenizer kept nothing (white space, a cut caption) has no token.

        Args:
            offsets: (L, 2) int64, characters [begin, end) of each token of ``caption``.

        Returns:
            (P, L) bool, on the device of ``offsets``.
        """
        flat = [span for phrase in self.spans for span in phrase]
        owners = [number for number, phrase in enumerate(self.spans) for _ in phrase]
        begins, ends = torch.tensor(flat, dtype=torch.int64).reshape(-1, 2).unbind(dim=1)
        begins, ends = begins.to(offsets.device)[:, None], ends.to(offsets.device)[:, None]
        first, last = offsets.unbind(dim=1)  # (L,) each
        overlap = (first < ends) & (last > begins) & (last > first)  # (spans, L)
        counts = overlap.new_zeros((len(self.spans), len(offsets)), dtype=torch.int32)
        owner = torch.tensor(owners, dtype=torch.int64, device=offsets.device)
        return counts.index_add_(0, owner, overlap.int()) > 0


def span_problem(caption: str, phrase: Sequence[Sequence[int]]) -> str | None:
    """What is wrong with the spans of one phrase of ``caption``, as the end of a sentence; None if
    they are good.

    Args:
        caption: the text.
        phrase: [begin, end) pairs; anything else is named as wrong.
    """
    if not phrase:
        return "has no span; give it one or more [begin, end) pairs"
    for span in phrase:
        whole = isinstance(span, list | tuple) and [type(value) for value in span] == [int, int]
        if not whole or not 0 <= span[0] < span[1] <= len(caption):
            return (
                f"has the span {_shown(span)}; it must be [begin, end) with 0 <= begin < end <= "
                f"{len(caption)}, the length of the caption"
            )
    return None


def _shown(span: object) -> str:
    text = repr(list(span) if isinstance(span, tuple) else span)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


@dataclass(frozen=True, eq=False)
class CaptionTokens:
    """B captions as tokens, padded to the longest of them.

    Attributes:
        ids: (B, L) int64 token ids.
        mask: (B, L) bool, False for padding; special tokens ([CLS], [SEP]) are True.
        offsets: (B, L, 2) int64, characters [begin, end) in the caption; (0, 0) for special tokens
            and padding.
    """

    ids: Tensor
    mask: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        """B."""
        return len(self.ids)

    def to(self, device: torch.device | str) -> "CaptionTokens":
        """The same on ``device``."""
        return CaptionTokens(
            *(value.to(device, non_blocking=True) for value in (self.ids, self.mask, self.offsets))
        )
