"""One optimizer step: mixed precision, gradient accumulation, and a check that it is finite."""

import contextlib
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ovd_d2.errors import OVDError
from ovd_d2.modeling.target_checks import honour

logger = logging.getLogger(__name__)

GRADIENT_NORM = "grad_norm"


class NonFiniteLossError(OVDError, FloatingPointError):
    """A loss or the gradient became nan or infinite; the weights are those of the step before."""


def amp_dtype(name: str, device_type: str) -> torch.dtype:
    """The type for ``SOLVER.AMP.DTYPE``: CPUs compute in bfloat16 whichever of the two is asked.

    Args:
        name: "float16" or "bfloat16".
        device_type: "cuda", "mps" or "cpu".
    """
    if name not in ("float16", "bfloat16"):
        raise OVDError(f"SOLVER.AMP.DTYPE is {name!r}; it must be 'float16' or 'bfloat16'.")
    if name == "float16" and device_type == "cpu":
        logger.warning("SOLVER.AMP.DTYPE float16 is for GPUs: on this CPU it is bfloat16.")
        return torch.bfloat16
    return getattr(torch, name)


class TrainLoop(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` and ``AMPTrainer`` in one, with accumulation and checks.

    A step draws ``accumulate`` batches, sums the gradients of their mean loss, checks every loss
    and the gradient norm (with one device-to-host copy), and only then moves the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        device_type: str,
        autocast_dtype: torch.dtype | None = None,
        accumulate: int = 1,
        remedy: str = "lower the learning rate, clip the gradients",
    ) -> None:
        """
        Args:
            model: batch -> dict of scalar losses (or one scalar), possibly wrapped by DDP.
            data_loader: iterable of batches, each a list of dicts.
            optimizer: over the parameters of ``model``.
            device_type: "cuda", "mps" or "cpu".
            autocast_dtype: for mixed precision; None for full precision.
            accumulate: batches per optimizer step.
            remedy: what a user should change when a loss or gradient is not finite.
        """
        super().__init__(model, data_loader, optimizer)
        honour(model, "SOLVER.ACCUMULATE", "SOLVER.AMP.DTYPE")
        self.device_type = device_type
        self.autocast_dtype = autocast_dtype
        self.accumulate = accumulate
        self.remedy = remedy
        scaled = autocast_dtype == torch.float16
        self.grad_scaler = torch.amp.GradScaler(device_type, enabled=scaled)

    def run_step(self) -> None:
        """Runs one optimizer step.

        Raises:
            NonFiniteLossError: before the weights are touched, on all processes alike, naming the
                loss, the iteration and the images.
        """
        if not self.model.training:
            raise RuntimeError("The model was left in eval mode; it must train.")
        self.optimizer.zero_grad(set_to_none=True)
        losses: list[dict[str, Tensor]] = []
        images: list[list[str]] = []
        data_seconds = 0.0
        for micro_batch in range(self.accumulate):
            start = time.perf_counter()
            batch = next(self._data_loader_iter)
            data_seconds += time.perf_counter() - start
            images.append([str(d.get("file_name", d.get("image_id"))) for d in batch])
            losses.append(self._forward_backward(batch, last=micro_batch == self.accumulate - 1))
        self.after_backward()
        self._check_and_log(losses, images, data_seconds)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _forward_backward(self, batch: list[dict[str, Any]], *, last: bool) -> dict[str, Tensor]:
        """Adds the gradient of one batch; returns its losses, detached."""
        waits = isinstance(self.model, DistributedDataParallel) and not last
        with self.model.no_sync() if waits else contextlib.nullcontext():
            with torch.autocast(
                self.device_type, self.autocast_dtype, enabled=self.autocast_dtype is not None
            ):
                losses = self.model(batch)
                if isinstance(losses, Tensor):
                    losses = {"total_loss": losses}
                total = sum(losses.values())
            self.grad_scaler.scale(total / self.accumulate).backward()
        return {name: torch.as_tensor(loss).detach() for name, loss in losses.items()}

    def _check_and_log(
        self, losses: list[dict[str, Tensor]], images: list[list[str]], data_seconds: float
    ) -> None:
        numbers, grad_norm = self._to_host(losses)
        problem = self._loss_problem(numbers, images)
        gradient_problem = self._gradient_problem(grad_norm, images)
        metrics: dict[str, float] = {}
        for batch_losses in numbers:
            for name, value in batch_losses.items():
                metrics[name] = metrics.get(name, 0.0) + value / self.accumulate
        gathered = comm.all_gather((metrics, data_seconds, problem))
        # A bad loss spreads through the gradients to all processes: name it, not its effect.
        problems = [p for _, _, p in gathered if p] or list(filter(None, [gradient_problem]))
        if problems:
            raise NonFiniteLossError(
                f"{' '.join(problems)} The weights are unharmed: {self.remedy}, or look at those "
                "images."
            )
        if comm.is_main_process():
            extra = {"data_time": max(seconds for _, seconds, _ in gathered)}
            if not self.grad_scaler.is_enabled():
                extra[GRADIENT_NORM] = grad_norm
            self._log(_mean_by_name([metrics for metrics, _, _ in gathered]), extra)

    def _to_host(self, losses: list[dict[str, Tensor]]) -> tuple[list[dict[str, float]], float]:
        """Losses per micro-batch and the gradient norm as floats, by one copy."""
        grads = [
            p.grad
            for group in self.optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm(grads)
        flat = [loss.to(norm) for batch_losses in losses for loss in batch_losses.values()]
        *values, grad_norm = torch.stack([*flat, norm]).tolist()
        values = iter(values)
        return [{name: next(values) for name in batch} for batch in losses], grad_norm

    def _loss_problem(self, numbers: list[dict[str, float]], images: list[list[str]]) -> str:
        """A sentence for the first losses that are not finite, or ""."""
        for batch_losses, names in zip(numbers, images):
            bad = [f"{k} = {v}" for k, v in batch_losses.items() if not math.isfinite(v)]
            if bad:
                return (
                    f"{', '.join(bad)} at iteration {self.iter} on the images {', '.join(names)}."
                )
        return ""

    def _gradient_problem(self, grad_norm: float, images: list[list[str]]) -> str:
        """A sentence for a gradient that is not finite, the same on all processes, or ""."""
        # Under a loss scale infinite gradients are expected now and then; the scaler skips them.
        if math.isfinite(grad_norm) or self.grad_scaler.is_enabled():
            return ""
        names = [name for batch in images for name in batch]
        return (
            f"The gradient norm is {grad_norm} with finite losses at iteration {self.iter} on "
            f"the images {', '.join(names)}."
        )

    def _log(self, losses: Mapping[str, float], extra: Mapping[str, float]) -> None:
        storage = get_event_storage()
        total = sum(losses.values())
        storage.put_scalars(cur_iter=self.iter, **extra)
        storage.put_scalar("total_loss", total, cur_iter=self.iter)
        # A single one too: with DATASETS.SOURCES the next batch may have others.
        storage.put_scalars(cur_iter=self.iter, **losses)

    def state_dict(self) -> dict[str, Any]:
        """Iteration, optimizer and loss scale."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned; a missing loss scale starts anew."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _mean_by_name(metrics: list[dict[str, float]]) -> dict[str, float]:
    """Mean over the processes that report a name."""
    names = dict.fromkeys(name for one in metrics for name in one)
    values = {name: [one[name] for one in metrics if name in one] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}
