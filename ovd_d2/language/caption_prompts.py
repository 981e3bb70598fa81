"""Class names as captions that a grounding model reads (GLIP, section 3.1 and its public code).

"person. traffic light. cat": the names one behind the other, each with the characters it takes.
A vocabulary of any size becomes as many captions as the text encoder's limit asks for; a training
image becomes one caption of the classes it shows among random others.

Letters: K classes of the vocabulary, Kp classes of one prompt, G boxes of an image, P prompts.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ovd_d2.encoders.caption_tokenizer import CaptionTokenizer
from ovd_d2.errors import OVDError, reason
from ovd_d2.structures.grounding import TokenSpans

SEPARATOR = ". "
_NOTE = re.compile(r"\(.*\)")


def clean_name(name: str) -> str:
    """A class name as GLIP's captions show it; another rule than that of ``prompts.clean_name``.

    Everything from the first "(" to the last ")" goes, "_" becomes a space, and each double space
    one. Nothing is stripped: "bow_(weapon)" -> "bow ". Different names may become equal.

    Raises:
        OVDError: nothing but white space is left.
    """
    cleaned = _NOTE.sub("", name).replace("_", " ").replace("  ", " ")
    if not cleaned.strip():
        raise OVDError(f"class name {name!r} has no letters left after cleaning; rename the class")
    return cleaned


@dataclass(frozen=True)
class NamePrompt:
    """What stands in a caption for one class (GLIP's manual prompts).

    ``NamePrompt(prefix="hand of a ")`` writes "hand of a person" for "person". The class is scored
    by the tokens of the name alone.

    Attributes:
        prefix: before the name, with its space.
        name: instead of the class name; "" for that.
        suffix: behind the name, with its space.
    """

    prefix: str = ""
    name: str = ""
    suffix: str = ""


def read_name_prompts(path: str) -> dict[str, NamePrompt]:
    """Manual prompts of a json file: {"class name": {"prefix": ..., "name": ..., "suffix": ...}}.

    Args:
        path: the file; "": none.

    Raises:
        OVDError: the file cannot be read, or an entry is something else.
    """
    if not path:
        return {}
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        prompts = {name: NamePrompt(**parts) for name, parts in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise OVDError(
            f"{path} cannot be read as prompts of class names ({reason(error)}): write a json file "
            '{"class name": {"prefix": "", "name": "", "suffix": ""}}, each part optional.'
        ) from error
    for name, prompt in prompts.items():
        wrong = [part for part in astuple(prompt) if not isinstance(part, str)]
        if wrong:
            raise OVDError(f"{path}: the prompt of {name!r} has {wrong[0]!r}, which is no text.")
    return prompts


@dataclass(frozen=True, eq=False)
class Prompt:
    """One caption, and which classes it names.

    Attributes:
        spans: the caption, and the characters of each of its Kp names.
        class_numbers: (Kp,) int64, the class in [0, K) of each; no class comes twice.
    """

    spans: TokenSpans
    class_numbers: Tensor

    def places(self, classes: Tensor) -> Tensor:
        """Where classes stand in this prompt.

        Args:
            classes: (G,) int64 in [0, K).

        Returns:
            (G,) int64 in [0, Kp), -1 for a class that the prompt does not name.
        """
        same = classes[:, None] == self.class_numbers.to(classes.device)  # (G, Kp)
        if not same.shape[1]:
            return torch.full_like(classes, -1)
        return same.int().argmax(dim=1).masked_fill(~same.any(dim=1), -1)


@dataclass(frozen=True)
class _Entry:
    """The text of one class, where in it the name is, and its tokens with the separator's."""

    text: str
    begin: int
    end: int
    tokens: int


class CaptionPrompts:
    """Makes captions of class names that a text encoder can read whole.

    Names are tokenised once, all together, and remembered. A name's tokens are counted with the
    separator behind it, as if no token ever crossed that: true for BERT's tokenizer, which splits
    at every full stop.

    Args:
        tokenizer: of the text encoder; its ``max_tokens`` is the limit of a caption.
        separator: between names; none follows the last one.
        prompts: class name -> what is written for it; classes that are not in it are written as
            :func:`clean_name` has them.
    """

    def __init__(
        self,
        tokenizer: CaptionTokenizer,
        separator: str = SEPARATOR,
        prompts: Mapping[str, NamePrompt] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.separator = separator
        self.prompts = dict(prompts or {})
        self.budget = tokenizer.max_tokens - tokenizer.special_tokens
        self._separator_tokens = int(tokenizer.count([separator])[0])
        self._entries: dict[str, _Entry] = {}

    def for_vocabulary(self, names: Sequence[str], max_names: int | None = None) -> list[Prompt]:
        """Captions that name every class once, in order, each as full as it can be.

        Args:
            names: K class names; equal ones are classes of their own.
            max_names: at most so many classes in a caption; None: as many as fit. The public code
                evaluates LVIS with 40.

        Returns:
            P prompts, whose class numbers are 0 to K - 1 one behind the other.

        Raises:
            OVDError: no name, a name that is too long for a caption or empty once it is cleaned,
                or ``max_names`` below 1.
        """
        if max_names is not None and max_names < 1:
            raise OVDError(f"max_names is {max_names}; a caption needs at least one name")
        entries = self._read(names)
        tokens = [entry.tokens for entry in entries]
        limit = self.budget + self._separator_tokens  # none follows the last name
        self._check_lengths(names, tokens, limit)
        starts, total = [0], 0
        for number, count in enumerate(tokens):
            full = max_names is not None and number - starts[-1] >= max_names
            if full or total + count > limit:
                starts.append(number)
                total = 0
            total += count
        ends = [*starts[1:], len(entries)]
        return [self._prompt(entries, range(*ends_of)) for ends_of in zip(starts, ends)]

    def for_training(
        self,
        present: Tensor,
        names: Sequence[str],
        generator: torch.Generator | None = None,
        *,
        negatives: Tensor | None = None,
        max_negatives: int = 85,
        all_negatives_probability: float = 0.5,
    ) -> tuple[Prompt, Tensor]:
        """The caption of a detection image: its classes and random others, shuffled.

        The classes of the boxes come first, in random order, until one would not fit; it and those
        behind it are left out of this caption with their boxes. Then, with probability
        ``all_negatives_probability``, ``max_negatives`` classes are drawn, otherwise 1 to that many
        (uniformly), without replacement; those that the image shows are dropped, and the others
        added until one does not fit: none, if classes of the image did not.

        Args:
            present: (G,) int64, class in [0, K) of each box.
            names: K class names.
            generator: a CPU generator of all random numbers; None: torch's global one.
            negatives: (n,) int64, classes that may be drawn, such as those that the data set labels
                at all; None: all K.
            max_negatives: the most to draw, 1 or more.
            all_negatives_probability: in [0, 1].

        Returns:
            the prompt, and (G,) bool on the device of ``present``, which boxes it names.

        Raises:
            OVDError: no name, a name that is too long for a caption or empty once it is cleaned, a
                class that is not in ``names``, or arguments out of their range.
        """
        if max_negatives < 1 or not 0 <= all_negatives_probability <= 1:
            raise OVDError(
                f"max_negatives is {max_negatives} and all_negatives_probability "
                f"{all_negatives_probability}; give 1 or more, and a number from 0 to 1"
            )
        entries = self._read(names)
        tokens = [entry.tokens for entry in entries]
        self._check_lengths(names, tokens, self.budget - 1)
        shown = self._shown(present, len(entries))
        positives, used = self._fill(_shuffled(shown, generator), tokens, self.budget)
        drawn = torch.arange(len(entries)) if negatives is None else negatives.cpu()
        count = max_negatives
        if float(torch.rand((), generator=generator)) >= all_negatives_probability:
            count = int(torch.randint(1, max_negatives + 1, (), generator=generator))
        others = _shuffled(drawn, generator)[:count]
        others = others[~torch.isin(others, shown)]
        # As the public code has it: one token less than for the image's own classes, and none
        # where these were too many already.
        room = self.budget - 1 if len(positives) == len(shown) else 0
        others, _ = self._fill(others, tokens, room, used)
        order = _shuffled(torch.cat([others, positives]), generator)
        prompt = self._prompt(entries, order.tolist())
        return prompt, torch.isin(present, positives.to(present.device))

    def _fill(
        self, classes: Tensor, tokens: Sequence[int], limit: int, used: int = 0
    ) -> tuple[Tensor, int]:
        """The first of ``classes`` that have at most ``limit`` tokens with the ``used`` ones, and
        how many those are."""
        counts = torch.tensor([tokens[c] for c in classes.tolist()], dtype=torch.int64)
        totals = used + counts.cumsum(dim=0)
        fitting = int((totals <= limit).sum())
        return classes[:fitting], int(totals[fitting - 1]) if fitting else used

    def _shown(self, present: Tensor, num_classes: int) -> Tensor:
        """The distinct classes of an image's boxes, ascending, on the CPU."""
        shown = present.unique().cpu()
        if len(shown) and not 0 <= int(shown[0]) <= int(shown[-1]) < num_classes:
            raise OVDError(
                f"present has classes from {int(shown[0])} to {int(shown[-1])}, but names has "
                f"{num_classes}; they must be places in names"
            )
        return shown

    def _read(self, names: Sequence[str]) -> list[_Entry]:
        """The entries of ``names``; those that are new are tokenised together."""
        if not len(names):
            raise OVDError("names is empty; give at least one class name")
        new = [name for name in dict.fromkeys(names) if name not in self._entries]
        parts = []
        for name in new:
            prompt = self.prompts.get(name, NamePrompt())
            parts.append((prompt.prefix, prompt.name or clean_name(name), prompt.suffix))
        texts = ["".join(part) for part in parts]
        counts = self.tokenizer.count([text + self.separator for text in texts]).tolist()
        for name, text, (prefix, shown, _), count in zip(new, texts, parts, counts, strict=True):
            self._entries[name] = _Entry(text, len(prefix), len(prefix) + len(shown), count)
        return [self._entries[name] for name in names]

    def _check_lengths(self, names: Sequence[str], tokens: Sequence[int], limit: int) -> None:
        longest = max(range(len(tokens)), key=tokens.__getitem__)
        if tokens[longest] > limit:
            raise OVDError(
                f"class name {names[longest][:60]!r} has {tokens[longest] - self._separator_tokens}"
                f" tokens, but a caption holds at most {limit - self._separator_tokens}; give the "
                "class a shorter name"
            )

    def _prompt(self, entries: Sequence[_Entry], classes: Sequence[int]) -> Prompt:
        texts, spans, place = [], [], 0
        for number in classes:
            entry = entries[number]
            texts.append(entry.text)
            spans.append(((place + entry.begin, place + entry.end),))
            place += len(entry.text) + len(self.separator)
        caption = TokenSpans(self.separator.join(texts), tuple(spans))
        return Prompt(caption, torch.tensor(list(classes), dtype=torch.int64))


def _shuffled(classes: Tensor, generator: torch.Generator | None) -> Tensor:
    return classes[torch.randperm(len(classes), generator=generator)]
