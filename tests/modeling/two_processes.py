"""A function in two processes that talk by gloo."""

import os
import socket
import traceback

import torch
from torch import distributed as dist


def in_two_processes(function, folder):
    """What ``function(rank)`` returns in each of two copies of this process: tensors, numbers,
    strings, and lists and dicts of them. The copies end without cleaning up.

    Args:
        function: also told by closures what the test has made.
        folder: for the results.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    children = [_forked(function, rank, port, folder / f"{rank}.pt") for rank in (0, 1)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def _forked(function, rank, port, out):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
        torch.save(function(rank), out)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
