"""One entry for single-process, Detectron2-launched and torchrun-launched training."""

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch import distributed

from ovd_d2.errors import OVDError


def launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """Calls ``main(args)`` in every training process.

    Under ``torchrun`` (RANK and WORLD_SIZE are set) this process is one of them: NCCL connects
    them on GPUs, gloo on CPUs. Otherwise Detectron2's ``launch`` starts ``--num-gpus`` processes
    on each of ``--num-machines``; without a GPU ``--num-gpus`` 0 and 1 mean one CPU process.

    Raises:
        OVDError: more GPUs asked for than there are.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _run_torchrun_worker(main, args)
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if args.num_gpus > max(available, 1):
        raise OVDError(
            f"--num-gpus {args.num_gpus}, but this machine has {available}: ask for fewer, or "
            f"train on CPUs with torchrun --nproc-per-node {args.num_gpus}."
        )
    if args.num_gpus * args.num_machines <= 1:
        return main(args)
    return detectron2_launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def _run_torchrun_worker(main: Callable, args: argparse.Namespace) -> Any:
    if int(os.environ["WORLD_SIZE"]) == 1:
        return main(args)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    comm.synchronize()
    result = main(args)
    distributed.destroy_process_group()
    return result
