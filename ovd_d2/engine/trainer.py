"""``OpenVocabTrainer``: Detectron2's trainer with exact resuming, checks and a test vocabulary."""

import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model
from detectron2.engine import hooks as detectron2_hooks
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules

from ovd_d2.checkpoint.atomic_checkpointer import AtomicCheckpointer
from ovd_d2.data import random_state
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import write_json
from ovd_d2.modeling.target_checks import EVALUATION, honour

from . import hooks
from .divergence import remedy_for_divergence
from .open_vocab_training import OpenVocabTraining
from .teacher_check import check_teacher, check_weight_transfer
from .train_loop import TrainLoop, amp_dtype
from .weight_average import WeightAverage

logger = logging.getLogger(__name__)


class OpenVocabTrainer(OpenVocabTraining, DefaultTrainer):
    """Trains and evaluates any Detectron2 model from a config, open-vocabulary or not.

    Beyond :class:`OpenVocabTraining`: AMP in float16 or bfloat16 on GPU and CPU, accumulation,
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
        self.check_evaluators(cfg)
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
                gradient_as_bucket_view=True,  # no second copy of all gradients
                device_ids=[device.index] if device.type == "cuda" else None,
            ),
            data_loader,
            optimizer,
            device_type=device.type,
            autocast_dtype=amp_dtype(amp.DTYPE, device.type) if amp.ENABLED else None,
            accumulate=cfg.SOLVER.ACCUMULATE,
            remedy=remedy_for_divergence(cfg, model),
        )
        honour(model, EVALUATION)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = AtomicCheckpointer(
            self.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.weight_average: WeightAverage | None = None
        if cfg.SOLVER.EMA.ENABLED:
            self.weight_average = WeightAverage(model, cfg.SOLVER.EMA.DECAY)
        honour(model, "SOLVER.EMA.ENABLED")
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._random_states: list[dict[str, Any]] | None = None
        self._restored_random_state: dict[str, Any] | None = None
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """Timing, schedule, average, precise BN, saving, evaluation, progress and metrics."""
        cfg = self.cfg
        ret: list[HookBase] = [detectron2_hooks.IterationTimer(), detectron2_hooks.LRScheduler()]
        if self.weight_average is not None:
            ret.append(self.weight_average)
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
        at_the_end = self.iter >= self.max_iter
        test = self.test_at_the_end if at_the_end else self.test
        with self.with_saved_weights():
            self._last_eval_results = test(self.cfg, self.model)
        if comm.is_main_process() and at_the_end:
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

    def with_saved_weights(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that are saved and evaluated: the average, if
        ``SOLVER.EMA`` asks for one."""
        average = self.weight_average
        return nullcontext() if average is None else average.applied()

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
        state["random_states"] = self._random_states or [random_state.capture()]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned; the random state when training starts."""
        super().load_state_dict(state_dict)
        states = state_dict.get("random_states", [])
        if len(states) == comm.get_world_size():
            self._restored_random_state = states[comm.get_rank()]
        elif states:
            logger.warning(
                "The checkpoint has random states of %d processes, there are %d: they start anew.",
                len(states), comm.get_world_size(),
            )  # fmt: skip


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
