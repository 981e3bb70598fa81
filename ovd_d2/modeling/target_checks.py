"""What open-vocabulary models notice of a trainer that is not made for them."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.structures import Instances
from torch import nn

from ovd_d2.config import add_ovd_config
from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary
from ovd_d2.modeling.class_numbers import ClassNumbers
from ovd_d2.structures import Supervision
from ovd_d2.structures.class_numbering import CLASS_NUMBERING

logger = logging.getLogger(__name__)

EVALUATION = "DATASETS.TEST"
# Keys that the model cannot honour itself. Those of the data are honoured by whoever marks rows.
_TRAINER_KEYS = (
    "SOLVER.OPTIMIZER", "SOLVER.ADAM_BETAS", "SOLVER.ADAM_EPS", "SOLVER.LR_MULTIPLIERS",
    "SOLVER.LINEAR_LR.PREFIXES", "SOLVER.ACCUMULATE", "SOLVER.AMP.DTYPE", "SOLVER.EMA.ENABLED",
)  # fmt: skip
_DATA_KEYS = (
    "DATASETS.SOURCES", "DATASETS.REGION_STORE", "INPUT.SCALE_JITTER.ENABLED",
    "INPUT.RESIZE_CROP.PROB",
)  # fmt: skip
# A source of DATASETS.SOURCES may come late; without any, what does not come at once never does.
_PATIENCE, _PATIENCE_WITH_SOURCES = 20, 1000
_REMEDIES = {
    Supervision.TEACHER_REGION: (
        "a teacher's regions (MODEL.REGION_DISTILLATION, IMAGE_BRANCH or OPEN_VOCAB.REGION_TASKS)",
        "set DATASETS.REGION_STORE",
        "take the weights of MODEL.REGION_DISTILLATION back to 0",
    ),
    Supervision.IMAGE_LABEL: (
        "image labels (MODEL.IMAGE_LABELS.WEIGHT or OPEN_VOCAB.REGION_TASKS)",
        "name a data set labels:FILE in DATASETS.SOURCES or DATASETS.TRAIN",
        "set MODEL.IMAGE_LABELS.WEIGHT 0",
    ),
}


class TargetChecks:
    """Class numbers of targets, supervision that never comes, and keys that nobody reads.

    Heads built from explicit arguments have one without data sets and keys unless they are given
    one; it then checks that class numbers are in range, and that the supervision comes.
    """

    @configurable
    def __init__(
        self,
        *,
        train_dataset: str = "",
        test_datasets: Sequence[str] = (),
        own_vocabulary: bool = False,
        trainer_keys: Mapping[str, Any] | None = None,
        data_keys: Mapping[str, Any] | None = None,
        distractors: str = "",
        patience: int = _PATIENCE,
    ) -> None:
        """
        Args:
            train_dataset: see :class:`ClassNumbers`.
            test_datasets: see :class:`ClassNumbers`.
            own_vocabulary: the vocabulary was chosen apart from the training data.
            trainer_keys: keys and values that a trainer must honour, and say so by
                :func:`honour`; others are named in a warning when training starts.
            data_keys: the same for the loader, which says so by marking its rows.
            distractors: TEST.DISTRACTORS.
            patience: training batches without a row of an expected kind before it is an error;
                batches without any row do not count.
        """
        self.class_numbers = ClassNumbers(train_dataset, test_datasets)
        self.own_vocabulary = own_vocabulary
        self.trainer_keys = dict(trainer_keys or {})
        self.data_keys = dict(data_keys or {})
        self.distractors = distractors
        self.patience = patience
        self.honoured: set[str] = set()
        self._has_trained = False
        self._seen: set[Supervision] = set()
        self._without: Counter[Supervision] = Counter()
        self._warned: set[str] = set()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        keys = [k for k in _TRAINER_KEYS if cfg.SOLVER.AMP.ENABLED or not k.endswith("AMP.DTYPE")]
        defaults = get_cfg()
        add_ovd_config(defaults)
        own_mapper = cfg.INPUT.MAPPER != defaults.INPUT.MAPPER  # it may not mark its rows
        return {
            "train_dataset": cfg.DATASETS.TRAIN[0] if cfg.DATASETS.TRAIN else "",
            "test_datasets": cfg.DATASETS.TEST,
            "own_vocabulary": bool(cfg.MODEL.OPEN_VOCAB.VOCABULARY),
            "trainer_keys": _changed(cfg, defaults, keys),
            "data_keys": {} if own_mapper else _changed(cfg, defaults, _DATA_KEYS),
            "distractors": cfg.TEST.DISTRACTORS,
            "patience": _PATIENCE_WITH_SOURCES if cfg.DATASETS.SOURCES else _PATIENCE,
        }

    def before_training(
        self,
        targets: Sequence[Instances] | None,
        vocabulary: Vocabulary,
        expected: Mapping[Supervision, Sequence[Instances]],
    ) -> None:
        """To be called with every training batch.

        Args:
            targets: all rows per image; None: they are label maps, which bear no mark of who has
                read them.
            vocabulary: the present classes.
            expected: kinds of rows that the heads learn from -> those rows per image.

        Raises:
            OVDError: ``patience`` batches have passed without any row of an expected kind.
        """
        if not self._has_trained:
            self._has_trained = True
            self._warn_of_keys(targets is None or any(t.has(CLASS_NUMBERING) for t in targets))
            self._warn_of_evaluation(vocabulary)
        for kind, rows in expected.items():
            if kind not in self._seen:
                self._note(kind, any(map(len, rows)), any(map(len, targets or ())))

    def before_inference(self, vocabulary: Vocabulary) -> None:
        """To be called before every inference: class numbers of detections are places in
        ``vocabulary``, which an evaluator takes for those of its data set.

        Args:
            vocabulary: the present classes.

        Raises:
            OVDError: a data set of DATASETS.TEST numbers its classes otherwise, and nobody has set
                a vocabulary for it. A model that has not trained here, whose own vocabulary lacks
                classes of that data set, is taken to predict and not to be evaluated: it warns.
        """
        if EVALUATION in self.honoured:
            return
        if self.distractors:
            self._warn(
                f"TEST.DISTRACTORS {self.distractors} are not among the model's classes: an "
                "evaluation without ovd_d2.vocabulary_for or ovd_d2.OpenVocabTraining ignores them."
            )
        found = self.class_numbers.numbered_otherwise(vocabulary)
        if found is None:
            return
        dataset, names = found
        lacking = not set(names) <= set(vocabulary.names)
        sentence = _evaluation_sentence(dataset, names, vocabulary)
        if self.own_vocabulary and lacking and not self._has_trained:
            self._warn(sentence)
        else:
            raise OVDError(sentence)

    def _note(self, kind: Supervision, has_kind: bool, has_rows: bool) -> None:
        if has_kind:
            self._seen.add(kind)
        elif has_rows:
            self._without[kind] += 1
        if self._without[kind] >= self.patience and kind not in self._seen:
            what, data, less = _REMEDIES[kind]
            raise OVDError(
                f"The model learns from {what}, but none of the first {self.patience} training "
                f"batches has a target row of {kind.name}: {data} and load the data with "
                f"ovd_d2.build_train_loader(cfg), or {less}."
            )

    def _warn_of_keys(self, marked: bool) -> None:
        unread = {k: v for k, v in self.trainer_keys.items() if k not in self.honoured}
        unread |= {} if marked else self.data_keys
        if unread:
            shown = ", ".join(f"{key} {value!r}" for key, value in unread.items())
            self._warn(
                f"Nobody has read {shown}: Detectron2's DefaultTrainer does not know such keys. "
                "Derive the trainer from (ovd_d2.OpenVocabTraining, DefaultTrainer), or take "
                "ovd_d2.engine.OpenVocabTrainer; if your trainer reads them itself, all is well."
            )

    def _warn_of_evaluation(self, vocabulary: Vocabulary) -> None:
        found = self.class_numbers.numbered_otherwise(vocabulary)
        if found is not None and EVALUATION not in self.honoured:
            self._warn(_evaluation_sentence(*found, vocabulary))

    def _warn(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            logger.warning(sentence)


def honour(model: nn.Module, *keys: str) -> None:
    """Says that whoever calls it honours these keys of the config that ``model`` was built from;
    :data:`EVALUATION`, that the vocabulary is swapped for every data set of DATASETS.TEST.

    Args:
        model: any, possibly wrapped by DDP.
        keys: such as "SOLVER.OPTIMIZER".
    """
    for part in model.modules():
        checks = getattr(part, "target_checks", None)
        if isinstance(checks, TargetChecks):
            checks.honoured.update(keys)


def _changed(cfg: CfgNode, defaults: CfgNode, keys: Sequence[str]) -> dict[str, Any]:
    """Those of ``keys`` whose values are not the defaults."""
    found = {}
    for key in keys:
        value, default = cfg, defaults
        for part in key.split("."):
            value, default = value[part], default[part]
        if value != default:
            found[key] = value
    return found


def _evaluation_sentence(dataset: str, names: Sequence[str], vocabulary: Vocabulary) -> str:
    number = next(
        i for i, name in enumerate(names) if i >= len(vocabulary) or vocabulary.names[i] != name
    )
    here = repr(vocabulary.names[number]) if number < len(vocabulary) else "nothing"
    return (
        f"DATASETS.TEST {dataset} numbers its classes otherwise than the model's vocabulary "
        f"(number {number} is {names[number]!r} there and {here} here), so an evaluator would take "
        "one for the other: derive the trainer from (ovd_d2.OpenVocabTraining, DefaultTrainer), or "
        f"evaluate inside `with ovd_d2.vocabulary_for(cfg, model, {dataset!r}):`; to predict only, "
        "call set_vocabulary or set DATASETS.TEST ()."
    )
