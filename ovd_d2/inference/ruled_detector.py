"""A detector behind class rules: what it finds is that of the reported classes.

Letters: M rows that the model scores, K reported classes.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary, VocabularyLike
from ovd_d2.language.known_names import competing_names
from ovd_d2.modeling.detection_choice import DetectionChoice, changed_choice, detection_choice

from .arguments import wanted_vocabulary
from .class_rules import LEAST_EXPONENT, ClassRules, class_rules, wanted_negatives
from .name_thresholds import ThresholdsLike, as_thresholds

logger = logging.getLogger(__name__)

OVERLAP = 0.5  # IoU from which boxes are the same thing, for detectors that suppress none
ROOM = 4  # the model gives so many times the detections that are wanted


class RuledDetector:
    """Names, negatives, competitors and synonyms in one pass of the model, and thresholds per name.

    *Competitors.* They take their share of the model's softmax and are never found, so that they
    neither suppress a box nor take a place.

    *Negatives.* They compete inside the model as any of its classes (softmax). Whatever the
    model, a detection of a name is dropped if one of a negative scores more and overlaps it by
    more than the IoU of the model's own NMS (0.5 of detectors without one).

    *Places.* The model gives :data:`ROOM` times the detections that are wanted, of which those of
    negatives, of other words for a class and below the thresholds are taken away. Should these
    have filled all places, so that better ones may be missing, a warning says so. Where nothing is
    taken away, it gives what is wanted.

    Attributes:
        scored: the M rows that the model gets as its vocabulary.
        vocabulary: the K reported classes.
        facts: what was asked for, for whoever writes down what was found.
        is_asked: False if there are competitors and nothing else.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: ClassRules,
        thresholds: Mapping[str, float],
        *,
        score_threshold: float | None,
        default_threshold: float,
        topk: int,
    ) -> None:
        """
        Args:
            model: in eval mode.
            rules: of the classes.
            thresholds: class name -> least score, of those that have one of their own.
            score_threshold: least score of the others; None: what the model considers.
            default_threshold: their least score where that is None and the model has to consider
                lower scores because of thresholds or synonyms.
            topk: most detections per image; < 0: all.

        Raises:
            OVDError: negatives or thresholds for a model that chooses no boxes.
        """
        self.scored, self.vocabulary = rules.scored, rules.reported
        self._model, self._rules, self._topk = model, rules, topk
        self._choice = detection_choice(model)
        if self._choice is None and (rules.negatives or thresholds):
            raise OVDError(
                f"{type(model).__name__} does not say how it chooses boxes (it has no "
                "detection_choice), which negatives and thresholds need: if it gives every pixel a "
                'class, name what else is there ("sky, wall") in the vocabulary.'
            )
        sums = rules.most_words > 1 and shares_probability(model)
        general = score_threshold
        if general is None:
            general = default_threshold if thresholds or sums else 0.0
        self._least = [thresholds.get(name, general) for name in rules.reported.names]
        self._lowest = min(self._least) if thresholds or sums else None
        self.is_asked = bool(rules.negatives or thresholds or rules.synonyms != "mean")
        self.facts = {"competitors": rules.competitors} if rules.competitors else {}
        if self.is_asked:
            self.facts["negatives"] = list(rules.negatives)
            self.facts["thresholds"] = dict(thresholds)
            self.facts["synonyms"] = rules.synonyms

    def detect(self, samples: list[dict[str, Any]]) -> list[dict[str, Instances | Tensor]]:
        """As ``model(samples)``, of the reported classes."""
        with self.room():
            outputs = self._model(samples)
            most = -1 if self._choice is None else self._choice.max_detections
        return [self._reported(output, most) for output in outputs]

    def room(self) -> AbstractContextManager:
        """Inside, the model finds no competitors, and its limits are wide enough for all that is
        taken away afterwards."""
        choice = self._choice
        if choice is None:
            return nullcontext()
        least = choice.score_threshold
        if self._lowest is not None:
            exponents = self._exponents(choice)
            of_a_word = least_of_a_word(self._lowest, self._rules.most_words, exponents)
            least = min(least, choice.threshold_for(of_a_word))
        most = self._topk * (ROOM if self.is_asked else 1)
        found = self._rules.found_rows if self._rules.competitors else None
        return changed_choice(choice, least, most, found)

    def _exponents(self, choice: DetectionChoice | None) -> Tensor | None:
        """Its ``share_exponents`` if a class has several words."""
        if choice is None or self._rules.most_words == 1:
            return None
        return choice.share_exponents

    def _reported(
        self, output: dict[str, Instances | Tensor], most: int
    ) -> dict[str, Instances | Tensor]:
        if "sem_seg" in output:
            return {"sem_seg": self._rules.apply_to_maps(output["sem_seg"])}
        overlap = OVERLAP if self._choice is None else self._choice.nms_threshold
        exponents = self._exponents(self._choice)
        given = output["instances"]
        found = self._rules.apply(given, overlap if overlap < 1 else OVERLAP, exponents)
        least = torch.tensor(self._least, device=found.scores.device)
        found = found[found.scores >= least[found.pred_classes]]
        full = 0 <= most == len(given) and given.scores.min() > least.min()
        if full and len(found) < self._topk:
            logger.warning(
                "All %d detections that the model gives of an image were used up: %d are left of "
                "the %d wanted, the others were of negatives, of other words for a class, or below "
                "a threshold. Raise topk or the score threshold, or give fewer negatives.",
                *(most, len(found), self._topk),
            )
        return {"instances": found if self._topk < 0 else found[: self._topk]}


def least_of_a_word(together: float, words: int, exponents: Tensor | None) -> float:
    """What one of a class's words scores at least, if they score ``together`` or more.

    Args:
        together: in [0, 1].
        words: of the class, at most.
        exponents: (M,), see ``DetectionChoice.share_exponents``; None: the best word counts.
    """
    if exponents is None:
        return together
    exponents = exponents.clamp(min=LEAST_EXPONENT)
    share = together ** (1 / float(exponents.min())) / words
    return share ** float(exponents.max())


def ruled_detector(
    model: nn.Module,
    vocabulary: Vocabulary,
    negatives: VocabularyLike | None = None,
    thresholds: ThresholdsLike | None = None,
    synonyms: str = "mean",
    *,
    trained: Vocabulary | None = None,
    competing: bool = False,
    close_to: Callable[[Vocabulary], Collection[int]] = lambda names: (),
    **options: Any,
) -> RuledDetector | None:
    """The detector for what ``OpenVocabPredictor.set_vocabulary`` was asked for; None if ``model``
    does for it as it is. It does not get its vocabulary here.

    Args:
        model: in eval mode.
        vocabulary: the K classes.
        negatives: names that compete, whatever gives them; None: none.
        thresholds: see :func:`as_thresholds`; None: none.
        synonyms: see :func:`class_rules`.
        trained: what the model was trained with, see :func:`wanted_vocabulary`.
        competing: the classes of ``trained`` that are neither looked for nor negatives compete, if
            the model's classes share a probability.
        close_to: rows of ``trained`` that do not compete with a vocabulary, see
            :meth:`~ovd_d2.language.known_rows.KnownRows.close_to`.
        options: of :class:`RuledDetector`.

    Raises:
        OVDError: arguments that do not go together, or that the model cannot follow.
    """
    others = None if negatives is None else wanted_negatives(negatives, vocabulary, trained)
    competitors = None
    if competing and trained is not None and shares_probability(model):
        wanted = [vocabulary, *filter(None, [others])]
        competitors = competing_names(wanted, trained, close_to(vocabulary))
    rules = class_rules(vocabulary, others, synonyms, competitors)
    own = {} if thresholds is None else as_thresholds(thresholds, vocabulary.names)
    return RuledDetector(model, rules, own, **options) if own or not rules.is_plain else None


def shares_probability(model: nn.Module) -> bool:
    """Whether the classes of ``model`` share a probability of 1, so that names that are not asked
    for make a difference."""
    choice = detection_choice(model)
    return choice is not None and choice.share_exponents is not None


def check_rules(
    vocabulary: str = "",
    *,
    negatives: str | None = None,
    thresholds: ThresholdsLike | None = None,
    synonyms: str = "mean",
) -> None:
    """Raises OVDError for arguments of ``OpenVocabPredictor.set_vocabulary`` that are wrong for any
    model. Without a ``vocabulary``, that of a model, only what needs no names is looked at."""
    if vocabulary:
        names = wanted_vocabulary(vocabulary)
        others = None if negatives is None else wanted_negatives(negatives, names)
        class_rules(names, others, synonyms)
        if thresholds is not None:
            as_thresholds(thresholds, names.names)
    else:
        class_rules(wanted_vocabulary(negatives or "object"), synonyms=synonyms)
