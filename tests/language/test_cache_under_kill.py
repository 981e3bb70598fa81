"""A process killed at any moment of a cache write leaves a cache that is right or rebuilt."""

import os
import sys
from pathlib import Path

import pytest
import warm_processes

# Runs in a process of its own, because it forks: once for each moment of death. Prints how many
# children died just before one of the steps of a write, and how many at a random moment.
KILLED_CHILDREN = """
import os, random, signal, sys, threading, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import torch
from tqdm import tqdm
tqdm.monitor_interval = 0  # no thread beside this one: a lock it holds at a fork stays held
tqdm.set_lock(threading.RLock())  # tqdm's own is shared with children, and a killed one keeps it
torch.set_num_threads(1)
from hashing_encoder import HashingEncoder
from ovd_d2.files import atomic
from ovd_d2.language import TextEmbeddingBank, Vocabulary

folder = Path(sys.argv[1])
vocabulary = Vocabulary.from_names([f"thing {i}" for i in range(50)])

def embed(cache):
    return TextEmbeddingBank(HashingEncoder(), cache_dir=cache).embed(vocabulary).embeddings

def die_before_step(cache, step):
    steps = iter(range(1, 1000))
    def counted(function):
        def call(*args, **kwargs):
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call
    for name in ("fsync", "replace", "close"):
        setattr(os, name, counted(getattr(os, name)))
    atomic.open = counted(open)
    embed(cache)

def write_forever(cache):
    while True:
        embed(cache)
        for path in cache.glob("*.json"):
            path.unlink()  # now the next turn writes again

def start(work, *arguments):
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
            os._exit(0)
        finally:
            os._exit(1)
    return child

expected = embed(folder / "whole")

def check(cache, what):
    for _ in range(2):
        assert torch.equal(embed(cache), expected), what

planned = 0
for before in ("empty", "damaged"):
    for step in range(1, 100):
        cache = folder / f"{before}-{step}"
        if before == "damaged":  # something stale is in the place of the new file
            embed(cache)
            path = next(cache.glob("*.safetensors"))
            path.write_bytes(path.read_bytes()[:-1])
        status = os.waitpid(start(die_before_step, cache, step), 0)[1]
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, (before, step, status)
            break
        planned += 1
        check(cache, (before, step))
        if before == "empty":
            assert not list(cache.glob(".*.partial")), (before, step)

unplanned = 0
for seed in range(10):
    cache = folder / f"random-{seed}"
    child = start(write_forever, cache)
    time.sleep(0.1 * random.Random(seed).random())
    os.kill(child, signal.SIGKILL)
    unplanned += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    check(cache, seed)
print(planned, unplanned)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_writer_never_leaves_a_wrong_cache(tmp_path):
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": str(here.parents[1]), "OMP_NUM_THREADS": "1"}
    process = warm_processes.run(
        [sys.executable, "-c", KILLED_CHILDREN, str(tmp_path), str(here)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert process.returncode == 0, process.stderr
    planned, unplanned = map(int, process.stdout.split())
    # Two files, each: create, flush, rename, flush the folder; from two starting points.
    assert planned >= 2 * 2 * 4
    assert unplanned == 10
