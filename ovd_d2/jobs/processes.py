"""A job as one process or, under ``torchrun``, as several that share the work."""

import argparse
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from detectron2.utils import comm
from torch import distributed

from ovd_d2.engine.launch import launch
from ovd_d2.errors import OVDError

LONGEST_WAIT = timedelta(days=30)  # of the first process to be done for the last one

Result = TypeVar("Result")
OnImage = Callable[[int, int], None]
"""Told (images done, images in all) of this process's share: once before the first image, with
those of earlier runs, then after every few images."""


def in_processes(job: Callable[[], Result]) -> Result:
    """What ``job()`` returns in this process, which under ``torchrun`` is connected with the others
    for as long as it takes.

    Calls may be nested: processes that are connected stay so, for they cannot be connected twice.
    """
    if comm.get_world_size() > 1:
        return job()
    return launch(lambda _: job(), argparse.Namespace(num_gpus=0, num_machines=1))


def wait_for_all() -> None:
    """Returns when all processes are here, be it after days.

    Shares end hours apart; the default group would give up waiting after some minutes.
    """
    if comm.get_world_size() > 1:
        distributed.barrier(distributed.new_group(backend="gloo", timeout=LONGEST_WAIT))


def process_device(wanted: str) -> str:
    """Where this process computes.

    Args:
        wanted: "cpu", "cuda", ...; "auto": this process's GPU if there is one.

    Raises:
        OVDError: torch cannot use it.
    """
    if wanted != "auto":
        try:
            torch.empty(0, device=wanted)
        except (RuntimeError, AssertionError) as error:  # unknown name; torch without CUDA
            raise OVDError(f"--device {wanted}: {str(error).splitlines()[0]}") from None
        return wanted
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
