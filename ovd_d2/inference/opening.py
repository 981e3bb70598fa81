"""Opening a predictor as a command line asks for it: a model by name, or a yaml and a checkpoint;
and its classes, by names and by examples, with what is not to be taken for them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovd_d2.errors import OVDError
from ovd_d2.files.digests import file_digest

from .example_vocabulary import ByExamples
from .model_folders import DEFAULT_MODEL, facts_of
from .predictor import OpenVocabPredictor
from .ruled_detector import check_rules

PathLike = str | os.PathLike


def check_model_choice(model: PathLike, config_file: PathLike | None, weights: PathLike) -> None:
    """Raises OVDError unless they fit together: a model, or a yaml that may have a checkpoint."""
    if model and config_file:
        raise OVDError("--model and --config-file exclude each other.")
    if weights and not config_file:
        raise OVDError("--weights needs the --config-file they were trained with.")


def open_predictor(
    model: PathLike = "",
    config_file: PathLike | None = None,
    weights: PathLike = "",
    **options: Any,
) -> OpenVocabPredictor:
    """The predictor of a model, or of a yaml and its checkpoint.

    Args:
        model: see ``OpenVocabPredictor.from_pretrained``; "": the default one, if there is no yaml.
        config_file: a yaml, instead of ``model``.
        weights: of ``config_file``.
        options: of :class:`OpenVocabPredictor`.

    Raises:
        OVDError: they do not fit together, there is no such model, or an option is wrong.
    """
    check_model_choice(model, config_file, weights)
    if config_file:
        return OpenVocabPredictor(config_file, weights, **options)
    return OpenVocabPredictor.from_pretrained(model or DEFAULT_MODEL, **options)


@dataclass(frozen=True)
class WantedClasses:
    """What to look for; every field as the option of ``ovd predict`` of that name.

    Attributes:
        vocabulary: names, a file of them, "dataset:NAME" or "everything"; "": the model's own.
        examples: a .json of example boxes or a profile; ``vocabulary`` then adds more classes.
        seen_by: what sees the examples, "model" or "crop".
        negatives: names that compete and are not reported.
        thresholds: a .json of least scores per name.
        synonyms: "mean" or "max".
        alone: names and examples do not compete with what else the model was trained with.
    """

    vocabulary: str = ""
    examples: Path | None = None
    seen_by: str = "model"
    negatives: str = ""
    thresholds: Path | None = None
    synonyms: str = "mean"
    alone: bool = False

    @property
    def rules(self) -> dict[str, Any]:
        """The keyword arguments of ``set_vocabulary``; {} if none says anything."""
        given = {
            "negatives": self.negatives or None,
            "thresholds": self.thresholds,
            "synonyms": self.synonyms,
        }
        return given if any(value not in (None, "mean") for value in given.values()) else {}

    @property
    def by_examples(self) -> ByExamples | None:
        """The classes by examples, with the names that are looked for beside them."""
        if self.examples is None:
            return None
        return ByExamples(self.examples, self.seen_by, self.vocabulary or None)

    def check(self) -> list[str]:
        """What can be checked without a model.

        Returns:
            the files that are read (and names, which are none): no output may replace one of them.

        Raises:
            OVDError: naming what is wrong.
        """
        if self.alone and not (self.vocabulary or self.examples):
            raise OVDError(
                "alone is for names of a vocabulary and for examples, and there are none: leave it "
                "out, or say what to look for."
            )
        check_rules("" if self.examples else self.vocabulary, **self.rules)
        files = [name for name in (self.vocabulary, self.negatives, self.thresholds) if name]
        if (wanted := self.by_examples) is not None:
            files += [self.examples, *wanted.checked().files()]
        return [str(file) for file in files]

    def example_digests(self) -> dict[str, str]:
        """File -> digest of what the examples are made of, for runs that are continued."""
        wanted = self.by_examples
        files = [] if wanted is None else [self.examples, *wanted.checked().files()]
        return {str(file): file_digest(file) for file in files}


def open_with_classes(
    wanted: WantedClasses,
    model: PathLike = "",
    config_file: PathLike | None = None,
    weights: PathLike = "",
    *,
    score_threshold: float | None = None,
    default_threshold: float,
    **options: Any,
) -> OpenVocabPredictor:
    """:func:`open_predictor` with classes to look for.

    Args:
        wanted: the classes.
        model: see there.
        config_file: see there.
        weights: see there.
        score_threshold: the least score; None: the model's own.
        default_threshold: of models that have none of their own.
        options: see there.

    Raises:
        OVDError: see there; or there are no classes, or they do not fit the model.
    """
    if score_threshold is None:
        facts = {} if config_file else facts_of(model or DEFAULT_MODEL)
        score_threshold = facts.get("score_threshold", default_threshold)
    by_examples, rules = wanted.by_examples, wanted.rules
    classes = by_examples.checked() if by_examples is not None else wanted.vocabulary or None
    predictor = open_predictor(
        model, config_file, weights, score_threshold=score_threshold,
        vocabulary=None if rules else classes,  # with rules they are set once, with these
        alone=wanted.alone, **options,
    )  # fmt: skip
    if rules and (classes := classes or predictor.vocabulary):
        predictor.set_vocabulary(classes, **rules, alone=wanted.alone)
    if predictor.vocabulary is None:
        raise OVDError('The model does not bring its classes along: add --vocab "cat, red mug".')
    return predictor
