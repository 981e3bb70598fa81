"""The classes that a model scores, and what of them is reported: negative names, competitors,
synonyms.

Letters: M rows that the model scores, K reported classes, R detections of an image.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from detectron2.structures import Instances
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary, VocabularyLike
from ovd_d2.language.prompts import clean_name

from .arguments import is_data_set, wanted_vocabulary

SYNONYMS = ("mean", "max")
_NAMED_AT_MOST = 5
LEAST_EXPONENT = 0.05  # below, shares hardly matter, and the sum is the largest


@dataclass(frozen=True)
class ClassRules:
    """What a model scores for K classes, their negative names and their competitors.

    Attributes:
        reported: the K classes.
        scored: the M rows: the words of the K classes, those of the negatives, then the
            competitors.
        owner: M numbers: in [0, K) the class that a row is a word of, from K on a negative or a
            competitor.
        negatives: their names.
        synonyms: "mean" or "max", see :func:`class_rules`.
        competitors: how many of the last rows take their share of a softmax and do nothing else.
    """

    reported: Vocabulary
    scored: Vocabulary
    owner: tuple[int, ...]
    negatives: tuple[str, ...] = ()
    synonyms: str = "mean"
    competitors: int = 0

    @cached_property
    def most_words(self) -> int:
        """Rows of the class, or negative, that has most."""
        return max(Counter(self.owner).values())

    @property
    def found_rows(self) -> int:
        """How many of the first rows may be found anywhere: all but the competitors."""
        return len(self.owner) - self.competitors

    @property
    def is_plain(self) -> bool:
        """Whether the rows are the reported classes, one by one."""
        return self.scored is self.reported

    def apply(
        self, found: Instances, overlap: float, share_exponents: Tensor | None = None
    ) -> Instances:
        """The model's detections as those of the reported classes.

        Of several words of a class (or negative) that overlap by an IoU above ``overlap`` the best
        box is kept, with the score of those words' best scores there together. Then a detection
        goes if one of a negative scores more and overlaps it by an IoU above ``overlap``; of equal
        scores it stays.

        Args:
            found: R, with ``pred_classes`` in [0, M) but none of competitors, in any frame.
            overlap: in [0, 1).
            share_exponents: (M,), see
                :class:`~ovd_d2.modeling.detection_choice.DetectionChoice`; None: the best counts.

        Returns:
            ``pred_classes`` in [0, K), best scores first, other fields as they were.
        """
        owner = torch.tensor(self.owner, device=found.pred_classes.device)
        if self.most_words > 1:
            found = _without_other_words(found, owner, overlap, share_exponents)
        classes = owner[found.pred_classes]
        wanted = classes < len(self.reported)
        boxes, scores = found.pred_boxes.tensor, found.scores
        better = scores[~wanted][None] > scores[wanted][:, None]
        lost = (better & (box_iou(boxes[wanted], boxes[~wanted]) > overlap)).any(dim=1)
        kept = wanted.nonzero().flatten()[~lost]
        kept = kept[scores[kept].argsort(descending=True, stable=True)]
        result = found[kept]
        result.pred_classes = classes[kept]
        return result

    def apply_to_maps(self, sem_seg: Tensor) -> Tensor:
        """(M, H, W) scores -> (K, H, W): a class scores its best word; there are no negatives."""
        owner = torch.tensor(self.owner, device=sem_seg.device)
        result = sem_seg.new_full((len(self.reported), *sem_seg.shape[1:]), -math.inf)
        rows = owner[:, None, None].expand_as(sem_seg)
        return result.scatter_reduce_(0, rows, sem_seg, "amax")


def _without_other_words(
    found: Instances, owner: Tensor, overlap: float, share_exponents: Tensor | None
) -> Instances:
    boxes, scores, rows = found.pred_boxes.tensor.double(), found.scores, found.pred_classes
    classes = owner[rows]
    several = owner.bincount()[classes] > 1  # what has one word is as the model gives it
    some = several.nonzero().flatten()
    some = some[batched_nms(boxes[some], scores[some].double(), classes[some], overlap)]
    kept = torch.cat([some, (~several).nonzero().flatten()])
    result = found[kept]
    if share_exponents is not None:
        exponents = share_exponents.to(boxes).clamp(min=LEAST_EXPONENT)[rows]
        shares = scores.double() ** (1 / exponents)
        together = box_iou(boxes[kept], boxes) > overlap
        together &= classes[kept][:, None] == classes
        together &= several | (kept[:, None] == torch.arange(len(found), device=kept.device))
        i, j = together.nonzero(as_tuple=True)
        of_words = shares.new_zeros(len(kept), len(owner))
        places = i * len(owner) + rows[j]
        of_words.view(-1).scatter_reduce_(0, places, shares[j], "amax")
        sums = of_words.sum(dim=1).clamp(max=1) ** exponents[kept]
        result.scores = torch.where(several[kept], sums.to(scores), scores[kept])
    return result


def class_rules(
    vocabulary: Vocabulary,
    negatives: Vocabulary | None = None,
    synonyms: str = "mean",
    competitors: Vocabulary | None = None,
) -> ClassRules:
    """What a model has to score so that ``vocabulary`` is reported.

    A word that is a name of the other list is no synonym in this one; and a negative that was a
    synonym of a class is meant as it is spelt, without what else is known of it.

    Args:
        vocabulary: the K classes.
        negatives: names that compete with them and are not reported.
        synonyms: "mean", a row per class, which the model makes of its words as it was trained to;
            or "max", a row per word: name and synonyms, but those that several classes share.
        competitors: classes that compete and suppress nothing, none of which another class means
            (see :func:`~ovd_d2.language.known_names.competing_names`); a row each.

    Raises:
        OVDError: a name in both lists, or another word for ``synonyms``.
    """
    if synonyms not in SYNONYMS:
        raise OVDError(f'synonyms is {synonyms!r}; it must be "mean" or "max".')
    classes = vocabulary
    if negatives is not None:
        _check_apart(vocabulary, negatives)
        ours, theirs = _words_of(vocabulary.names), _words_of(negatives.names)
        classes = _joined(_without_words(vocabulary, theirs), _as_spelt(negatives, ours))
    owner = tuple(range(len(classes)))
    if synonyms == "max":
        classes, owner = _row_per_word(classes)
    names, count = () if negatives is None else negatives.names, 0
    if competitors is not None:
        count, first = len(competitors), len(vocabulary) + len(names)
        classes, owner = _joined(classes, competitors), (*owner, *range(first, first + count))
    return ClassRules(vocabulary, classes, owner, names, synonyms, count)


def wanted_negatives(
    negatives: VocabularyLike, vocabulary: Vocabulary, trained: Vocabulary | None = None
) -> Vocabulary:
    """Names that compete, from whatever gives them; of "dataset:NAME" those that ``vocabulary`` has
    are left out: all others of the data set compete.

    Args:
        negatives: as the vocabulary is given, see :func:`wanted_vocabulary`.
        vocabulary: the K classes.
        trained: the model's own, see there.

    Raises:
        OVDError: no usable names, or none are left.
    """
    found = wanted_vocabulary(negatives, trained)
    if not is_data_set(negatives):
        return found
    ours = _words_of(vocabulary.names)
    rows = [row for row, name in enumerate(found.names) if clean_name(name) not in ours]
    if not rows:
        raise OVDError(f"negatives {negatives} has no name that the vocabulary lacks.")
    fields = ("names", "synonyms", "definitions", "is_novel")
    return Vocabulary(**{f: tuple(getattr(found, f)[row] for row in rows) for f in fields})


def _words_of(names: Sequence[str]) -> set[str]:
    return {clean_name(name) for name in names}


def _check_apart(vocabulary: Vocabulary, negatives: Vocabulary) -> None:
    ours = _words_of(vocabulary.names)
    both = [name for name in negatives.names if clean_name(name) in ours]
    if both:
        more = f" and {len(both) - _NAMED_AT_MOST} more" if both[_NAMED_AT_MOST:] else ""
        named = ", ".join(repr(name) for name in both[:_NAMED_AT_MOST])
        raise OVDError(
            f"negatives has {named}{more}, which the vocabulary has too: a name is looked for or "
            "competes, so take it out of one of them."
        )


def _without_words(vocabulary: Vocabulary, others: set[str]) -> Vocabulary:
    """Without synonyms that are among ``others``."""
    synonyms = [
        tuple(word for word in words if clean_name(word) not in others)
        for words in vocabulary.synonyms
    ]
    return replace(vocabulary, synonyms=tuple(synonyms))


def _as_spelt(negatives: Vocabulary, others: set[str]) -> Vocabulary:
    """Those of ``negatives`` that have a synonym among ``others`` keep their names alone."""
    synonyms, definitions = list(negatives.synonyms), list(negatives.definitions)
    for row, words in enumerate(negatives.synonyms):
        if others & _words_of(words):
            synonyms[row], definitions[row] = (negatives.names[row],), ""
    return replace(negatives, synonyms=tuple(synonyms), definitions=tuple(definitions))


def _joined(first: Vocabulary, second: Vocabulary) -> Vocabulary:
    return Vocabulary(
        names=first.names + second.names,
        synonyms=first.synonyms + second.synonyms,
        definitions=first.definitions + second.definitions,
        is_novel=first.is_novel + second.is_novel,
    )


def _row_per_word(classes: Vocabulary) -> tuple[Vocabulary, tuple[int, ...]]:
    """A class per name and synonym, and whose word each is."""
    words_of_class = [
        {clean_name(word): word for word in reversed((name, *words))}
        for name, words in zip(classes.names, classes.synonyms)
    ]
    count = Counter(word for words in words_of_class for word in words)
    taken = _words_of(classes.names)
    names, owner = [], []
    for k, (name, words) in enumerate(zip(classes.names, words_of_class)):
        others = [spelt for word, spelt in words.items() if count[word] == 1 and word not in taken]
        names += [name, *reversed(others)]
        owner += [k] * (1 + len(others))
    rows = Vocabulary(
        names=tuple(names),
        definitions=tuple(classes.definitions[k] for k in owner),
        is_novel=tuple(classes.is_novel[k] for k in owner),
    )
    return rows, tuple(owner)
