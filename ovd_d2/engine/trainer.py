"""``OpenVocabTrainer``: Detectron2's trainer with exact resuming, checks and a test vocabulary."""

import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model
from detectron2.engine import hooks as detectron2_hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.utils.data import DataLoader

from ovd_d2.atomic_file import write_json
from ovd_d2.data import random_state
from ovd_d2.data.build import build_test_loader, build_train_loader
from ovd_d2.data.named_datasets import register_named_files
from ovd_d2.errors import OVDError

from . import hooks
from .checkpoint import AtomicCheckpointer
from .dataset_vocabulary import dataset_vocabulary
from .optimizer import build_optimizer
from .teacher_check import check_teacher, check_weight_transfer
from .train_loop import TrainLoop, amp_dtype

logger = logging.getLogger(__name__)


class OpenVocabTrainer(DefaultTrainer):
    """Trains and evaluates any Detectron2 model from a config, open-vocabulary or not.

    Beyond ``DefaultTrainer``: AMP in float16 or bfloat16 on GPU and CPU, accumulation, AdamW,
    atomic checkpoints, a check of every loss before every step, and resuming that continues as if
    the run had never stopped (weights, optimizer, schedule, loss scale, random states, place in
    the data). On one CPU process that is bit by bit the same.

    Not part of a checkpoint: plain Python attributes a model changes while it trains, such as the
    loss normaliser of Detectron2's RetinaNet.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: a config with ovd_d2's keys.

        Raises:
            OVDError: bad config or dataset; nothing has been written then.
        """
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        check_teacher(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        device = next(model.parameters()).device
        amp = cfg.SOLVER.AMP
        self._trainer = TrainLoop(
            create_ddp_model(
                model,
                broadcast_buffers=False,
                device_ids=[device.index] if device.type == "cuda" else None,
            ),
            data_loader,
            optimizer,
            device_type=device.type,
            autocast_dtype=amp_dtype(amp.DTYPE, device.type) if amp.ENABLED else None,
            accumulate=cfg.SOLVER.ACCUMULATE,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = AtomicCheckpointer(
            self.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._random_states: list[dict[str, Any]] | None = None
        self._restored_random_state: dict[str, Any] | None = None
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Detectron2's, in the memory layout of ``MODEL.CHANNELS_LAST``.

        Raises:
            OVDError: a part is named that no registry knows.
        """
        for name in cfg.DATASETS.TRAIN:  # heads ask for the names of its classes
            register_named_files(name)
        try:
            model = super().build_model(cfg)
        except KeyError as error:
            if "registry" not in str(error):
                raise
            raise OVDError(f"MODEL names an unknown part: {error.args[0]}") from error
        return model.to(memory_format=torch.channels_last) if cfg.MODEL.CHANNELS_LAST else model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See :func:`ovd_d2.engine.optimizer.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """Detectron2's.

        Raises:
            OVDError: the schedule does not fit together.
        """
        try:
            return super().build_lr_scheduler(cfg, optimizer)
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
        from ovd_d2.evaluation import build_evaluator

        return build_evaluator(cfg, dataset_name, os.path.join(cfg.OUTPUT_DIR, "inference"))

    def build_hooks(self) -> list[HookBase]:
        """Timing, schedule, precise BN, saving, evaluation, progress and metrics, in that order."""
        cfg = self.cfg
        ret: list[HookBase] = [detectron2_hooks.IterationTimer(), detectron2_hooks.LRScheduler()]
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            loader = self.build_train_loader(cfg)
            ret.append(
                hooks.PreciseBN(
                    cfg.TEST.EVAL_PERIOD, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER
                )
            )
        # Saving comes before evaluation: a failed evaluation can be repeated from the file.
        ret.append(
            hooks.PeriodicCheckpointer(
                self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINT_KEEP
            )
        )
        ret.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
        ret.append(hooks.ProgressBar())
        if comm.is_main_process():
            ret.append(hooks.PeriodicWriter(self.build_writers, period=20))
        return ret

    def build_writers(self) -> list[EventWriter]:
        """See :func:`ovd_d2.engine.hooks.build_writers`."""
        return hooks.build_writers(self.cfg.OUTPUT_DIR, self.max_iter, self.start_iter)

    def _evaluate(self) -> dict[str, Any]:
        self._last_eval_results = self.test(self.cfg, self.model)
        if comm.is_main_process() and self.iter >= self.max_iter:
            write_results(self.cfg, self._last_eval_results, iteration=self.iter)
        return self._last_eval_results

    def train(self) -> dict[str, Any] | None:
        """Trains from ``start_iter`` to ``max_iter``.

        Returns:
            on the main process the results of the last evaluation, after they have been compared
            with ``TEST.EXPECTED_RESULTS``.
        """
        check_weight_transfer(self.model)
        logger.info("Training from iteration %d to %d", self.start_iter, self.max_iter)
        self.iter = self.start_iter
        with EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                for iteration in range(self.start_iter, self.max_iter):
                    self.iter = iteration
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter = self.max_iter
            except OVDError:
                raise  # its sentence says it all
            except Exception:
                logger.exception("Training stopped at iteration %d:", self.iter)
                raise
            finally:
                self.after_train()
        if not comm.is_main_process():
            return None
        results = getattr(self, "_last_eval_results", None)
        if self.cfg.TEST.EXPECTED_RESULTS:
            verify_results(self.cfg, results or {})
        return results

    def before_train(self) -> None:
        """Hooks first; then the random state of the checkpoint, so that nothing comes between."""
        super().before_train()
        if self._restored_random_state is not None:
            random_state.restore(self._restored_random_state)
            self._restored_random_state = None

    @contextmanager
    def gathered_random_states(self) -> Iterator[None]:
        """Inside, ``state_dict`` holds the random states of all processes; all must call it."""
        self._random_states = comm.all_gather(random_state.capture())
        try:
            yield
        finally:
            self._random_states = None

    def state_dict(self) -> dict[str, Any]:
        """Iteration, hooks, optimizer, loss scale, place in the data and random states."""
        state = super().state_dict()
        if hasattr(self.data_loader, "state_dict"):
            state["data_loader"] = self.data_loader.state_dict()
        state["random_states"] = self._random_states or [random_state.capture()]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned; the random state when training starts."""
        super().load_state_dict(state_dict)
        if "data_loader" in state_dict and hasattr(self.data_loader, "load_state_dict"):
            self.data_loader.load_state_dict(state_dict["data_loader"])
        states = state_dict.get("random_states", [])
        if len(states) == comm.get_world_size():
            self._restored_random_state = states[comm.get_rank()]
        elif states:
            logger.warning(
                "The checkpoint has random states of %d processes, there are %d: they start anew.",
                len(states), comm.get_world_size(),
            )  # fmt: skip

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """Evaluates on every dataset of ``DATASETS.TEST``, each with its own vocabulary.

        Args:
            cfg: the config.
            model: holds the weights to evaluate.
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
            with dataset_vocabulary(cfg, model, name):
                results[name] = super().test(one, model, evaluators and [evaluators[i]])
        return next(iter(results.values())) if len(results) == 1 else results


def write_results(cfg: CfgNode, results: dict[str, Any], iteration: int | None = None) -> None:
    """Writes OUTPUT_DIR/results.json atomically.

    Args:
        cfg: names datasets and folder.
        results: of :meth:`OpenVocabTrainer.test`.
        iteration: optimizer steps behind the weights; None if unknown.

    The file: ``{"iteration": int or null, "results": {dataset: {task: {metric: value}}}}``, with
    null for metrics that are nan.
    """
    names = cfg.DATASETS.TEST
    per_dataset = {names[0]: results} if len(names) == 1 else results
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    path = os.path.join(cfg.OUTPUT_DIR, "results.json")
    write_json(path, {"iteration": iteration, "results": per_dataset})
    logger.info("Results written to %s", path)
