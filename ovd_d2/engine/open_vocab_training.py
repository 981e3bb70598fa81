"""``OpenVocabTraining``: what an open-vocabulary model needs of anybody's ``DefaultTrainer``."""

import logging
import os
from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, DefaultTrainer
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from ovd_d2.data.build import build_test_loader, build_train_loader
from ovd_d2.data.named_datasets import register_named_files
from ovd_d2.errors import OVDError
from ovd_d2.evaluation import build_evaluator, check_evaluator
from ovd_d2.evaluation.odinw import summarize_what_was_evaluated
from ovd_d2.modeling.adapters import adapter_state, load_adapter_state
from ovd_d2.modeling.batch_norm import finish_model
from ovd_d2.modeling.build import explained_build
from ovd_d2.modeling.target_checks import EVALUATION, honour
from ovd_d2.modeling.tuning import tune_model

from .dataset_vocabulary import vocabulary_for
from .optimizer import build_lr_scheduler, build_optimizer
from .teacher_check import check_teacher, check_weight_transfer
from .train_loop import amp_dtype

logger = logging.getLogger(__name__)


class OpenVocabTraining:
    """A mixin that makes a ``DefaultTrainer`` honour ovd_d2's keys::

        class Trainer(ovd_d2.OpenVocabTraining, DefaultTrainer):
            pass

    Loaders (sources, region store, image labels, class numbers), optimizer, evaluators, the type of
    mixed precision and the memory layout are those of the config, each test data set gets its own
    vocabulary, and the teacher is checked before training. The place in the data is part of a
    checkpoint. Steps, checkpoints and hooks stay ``DefaultTrainer``'s, so ``SOLVER.ACCUMULATE``
    and ``SOLVER.EMA`` are refused, and ``SOLVER.CHECKPOINT_KEEP`` and the check of gradients are
    ``OpenVocabTrainer``'s alone.

    Override its methods as you would those of ``DefaultTrainer``.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if DefaultTrainer in order and order.index(DefaultTrainer) < order.index(OpenVocabTraining):
            raise OVDError(
                f"class {cls.__name__}: name OpenVocabTraining before the trainer, as in "
                "(ovd_d2.OpenVocabTraining, DefaultTrainer), or it has no effect."
            )

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: a config with ovd_d2's keys.

        Raises:
            OVDError: bad config or data set, or a key that this trainer cannot honour.
        """
        if cfg.SOLVER.ACCUMULATE != 1:
            raise OVDError(
                f"SOLVER.ACCUMULATE is {cfg.SOLVER.ACCUMULATE}, but DefaultTrainer's steps are of "
                "one batch: set it to 1, or train with ovd_d2.engine.OpenVocabTrainer."
            )
        if cfg.SOLVER.EMA.ENABLED:
            raise OVDError(
                "SOLVER.EMA.ENABLED is True, but DefaultTrainer saves and evaluates the weights as "
                "they are: set it False, or train with ovd_d2.engine.OpenVocabTrainer."
            )
        self.check_evaluators(cfg)
        super().__init__(cfg)
        model = self._unwrapped()
        check_teacher(self.cfg, model)
        if isinstance(self._trainer, AMPTrainer):
            self._trainer.precision = amp_dtype(cfg.SOLVER.AMP.DTYPE, "cuda")
        honour(model, "SOLVER.AMP.DTYPE", EVALUATION)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Detectron2's, with ``MODEL.BATCH_NORM``, in the layout of ``MODEL.CHANNELS_LAST``, and of
        it learns what ``MODEL.TUNE`` says.

        Raises:
            OVDError: a part is named that no registry knows, or cannot be built from its keys.
        """
        for name in cfg.DATASETS.TRAIN:  # heads ask for the names of its classes
            register_named_files(name)
        with explained_build(cfg):
            model = super().build_model(cfg)
        return tune_model(finish_model(model, cfg), cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See :func:`ovd_d2.engine.optimizer.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """See :func:`ovd_d2.engine.optimizer.build_lr_scheduler`.

        Raises:
            OVDError: the schedule does not fit together.
        """
        try:
            return build_lr_scheduler(cfg, optimizer)
        except (ValueError, AssertionError) as error:
            raise OVDError(
                "SOLVER.LR_SCHEDULER_NAME, STEPS, MAX_ITER and BASE_LR_END do not fit together: "
                f"{error}."
            ) from error

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """See :func:`ovd_d2.data.build.build_train_loader`."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """See :func:`ovd_d2.data.build.build_test_loader`."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator that the dataset's metadata asks for, writing to OUTPUT_DIR/inference."""
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def check_evaluators(cls, cfg: CfgNode) -> None:
        """Raises OVDError if a data set of ``DATASETS.TEST`` cannot be evaluated; a subclass with a
        ``build_evaluator`` of its own is taken at its word."""
        if cls.build_evaluator.__func__ is OpenVocabTraining.build_evaluator.__func__:
            for name in cfg.DATASETS.TEST:
                register_named_files(name)
                check_evaluator(cfg, name)

    def train(self) -> dict[str, Any] | None:
        """``DefaultTrainer``'s, after a last look at the weights.

        Raises:
            OVDError: see :func:`ovd_d2.engine.teacher_check.check_weight_transfer`.
        """
        check_weight_transfer(self.model)
        return super().train()

    def after_train(self) -> None:
        """Ends the processes that load images, then the hooks: the trainer is part of a cycle, so
        that they would live on until Python looks for garbage, and make it wait for them then."""
        if hasattr(self.data_loader, "state_dict"):  # it knows where to go on
            self._trainer._data_loader_iter_obj = None
        super().after_train()

    def state_dict(self) -> dict[str, Any]:
        """The trainer's, the place in the data, and adapters apart from the weights they are on."""
        state = super().state_dict()
        if adapters := adapter_state(self._unwrapped()):
            state["adapters"] = adapters
        if hasattr(self.data_loader, "state_dict"):
            state["data_loader"] = self.data_loader.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        load_adapter_state(self._unwrapped(), state_dict.get("adapters", {}))
        super().load_state_dict(state_dict)
        if "data_loader" in state_dict and hasattr(self.data_loader, "load_state_dict"):
            self.data_loader.load_state_dict(state_dict["data_loader"])

    def _unwrapped(self) -> nn.Module:
        return getattr(self.model, "module", self.model)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """Evaluates on every dataset of ``DATASETS.TEST``, each with its own vocabulary; of ODinW
        the means are logged too.

        Args:
            cfg: the config.
            model: holds the weights to evaluate; of a ``GeneralizedRCNNWithTTA``, that it wraps.
            evaluators: one per dataset instead of :meth:`build_evaluator`.

        Returns:
            {task: {metric: value}}, or one such dict per dataset name if there are several.
        """
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None and len(evaluators) != len(cfg.DATASETS.TEST):
            raise ValueError(f"{len(evaluators)} evaluators for {len(cfg.DATASETS.TEST)} datasets")
        results: dict[str, Any] = OrderedDict()
        for i, name in enumerate(cfg.DATASETS.TEST):
            one = cfg.clone()
            one.defrost()
            one.DATASETS.TEST = (name,)
            if cfg.MODEL.LOAD_PROPOSALS:
                one.DATASETS.PROPOSAL_FILES_TEST = (cfg.DATASETS.PROPOSAL_FILES_TEST[i],)
            one.freeze()
            with vocabulary_for(cfg, getattr(model, "model", model), name):
                results[name] = super().test(one, model, evaluators and [evaluators[i]])
        if comm.is_main_process():
            summarize_what_was_evaluated(results)
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:  # noqa: N802
        """Evaluates with test-time augmentation (``TEST.AUG``), as Detectron2's train_net.py does
        at the end if ``TEST.AUG.ENABLED``; predictions go to OUTPUT_DIR/inference_TTA/inference.

        Returns:
            as :meth:`test`, with "_TTA" behind each task.
        """
        logger.info("Evaluating once more, with test-time augmentation (TEST.AUG) ...")
        augmented = cfg.clone()
        augmented.defrost()
        augmented.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        augmented.freeze()
        found = cls.test(augmented, GeneralizedRCNNWithTTA(augmented, model))
        several = len(cfg.DATASETS.TEST) > 1
        by_dataset = found if several else {"": found}
        named = {
            name: OrderedDict((f"{task}_TTA", metrics) for task, metrics in tasks.items())
            for name, tasks in by_dataset.items()
        }
        return named if several else named[""]

    @classmethod
    def test_at_the_end(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """:meth:`test` and, if ``TEST.AUG.ENABLED``, :meth:`test_with_TTA`."""
        results = cls.test(cfg, model)
        if cfg.TEST.AUG.ENABLED and cfg.DATASETS.TEST:
            more = cls.test_with_TTA(cfg, model)
            if len(cfg.DATASETS.TEST) == 1:
                results.update(more)
            else:
                for name, tasks in more.items():
                    results[name].update(tasks)
        return results
