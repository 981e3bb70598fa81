"""Writers killed at any moment: no image is lost or doubled, and at most one shard done again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Runs in a process of its own, because it forks: once for each moment of death. Each child writes a
# byte-sized note after every append and every finished shard, so the parent knows what must be
# there, and kills after a random number of notes. A child with notes never finishes: it waits
# before its last image, so the kill finds it alive on machines of any speed. Prints how many
# children died just before a step of a write, and how many after a random number of notes.
KILLED_WRITERS = """
import os, random, signal, sys, time
sys.argv = ["ovd"] + sys.argv[1:]  # lets ovd_d2 skip registering models and data sets
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import torch
torch.set_num_threads(1)
import safetensors.numpy
from region_samples import facts, regions_of, same
from ovd_d2.files import atomic
from ovd_d2.region_store import RegionStore, RegionStoreWriter, merge_manifests, verify

folder = Path(sys.argv[1])
IDS = [f"image {n}" if n % 3 else n for n in range(40)]
EXPECTED = {image_id: regions_of(n, count=n % 5) for n, image_id in enumerate(IDS)}
PER_SHARD = 3

def write(path, notes=None, rank=0, world_size=1):
    note = (lambda what: os.write(notes, what)) if notes else (lambda what: None)
    with RegionStoreWriter(path, facts(IDS), rank=rank, world_size=world_size) as writer:
        todo = writer.remaining(IDS)
        for count, image_id in enumerate(todo[:-1] if notes else todo, 1):
            writer.append(image_id, EXPECTED[image_id])
            note(b"a")
            if count % PER_SHARD == 0:
                writer.flush()
                note(b"f")
        if notes:
            note(b"w")
            time.sleep(120)
            os._exit(1)  # nobody killed it

def killed_after(children, reading, count, chance):
    # All notes of the children, killed one by one once ``count`` notes came or one of them waits.
    notes = b""
    while len(notes) < count and b"w" not in notes and (note := os.read(reading, 1)):
        notes += note
    for child in children:
        time.sleep(0.004 * chance.random())  # somewhere between two notes
        os.kill(child, signal.SIGKILL)
    assert all([ended(child) for child in children])
    while block := os.read(reading, 4096):
        notes += block
    os.close(reading)
    return notes

def die_before(step, path):
    steps = iter(range(1, 10000))
    def counted(function):
        def call(*args, **kwargs):
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call
    for owner, name in ((os, "fsync"), (os, "replace"), (os, "unlink"),
                        (safetensors.numpy, "save"), (Path, "unlink")):
        setattr(owner, name, counted(getattr(owner, name)))
    atomic.open = counted(open)
    write(path)

def start(work, *arguments):
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
            os._exit(0)
        finally:
            os._exit(1)
    return child

def ended(child):
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)

def check(path, what):
    store = RegionStore(path)
    assert sorted(map(str, store)) == sorted(map(str, IDS)), what
    assert all(same(store[image_id], EXPECTED[image_id]) for image_id in IDS), what
    assert verify(path) == [], what
    listed = {"manifest.json"}
    names = {file.name for file in path.iterdir() if not file.name.endswith(".lock")}
    shards = {name for name in names if name.endswith(".safetensors") and name[0] != "."}
    assert names == shards | listed, (what, names)
    assert len(store._entries) == len(shards), what

planned = 0
for step in range(1, 1000):
    path = folder / f"planned-{step}"
    if not ended(start(die_before, step, path)):
        break
    planned += 1
    write(path)
    check(path, step)

unplanned = 0
for seed in range(15):
    chance = random.Random(seed)
    path = folder / f"random-{seed}"
    known = set()
    for turn in range(4):
        todo = [image_id for image_id in IDS if image_id not in known]
        reading, writing = os.pipe()
        child = start(write, path, writing)
        os.close(writing)
        notes = killed_after([child], reading, chance.randrange(1 + len(todo) // 2), chance)
        unplanned += 1
        writer = RegionStoreWriter(path, facts(IDS))
        done = list(writer.done_ids)
        writer.__exit__(RuntimeError, RuntimeError(), None)  # as if interrupted: not merged
        appended, finished = notes.count(b"a"), notes.count(b"f") * PER_SHARD
        assert len(done) == len(set(done)) and known <= set(done), (seed, turn)
        # The shard whose note did not come may be there or not; no other.
        new = set(done) - known
        assert new == set(todo[:len(new)]), (seed, turn)
        assert finished <= len(new) and appended - PER_SHARD <= len(new), (seed, turn, notes, new)
        known = set(done)
    write(path)
    check(path, seed)

# Several processes, killed at different moments, and another number of them at every turn.
for seed in range(6):
    chance = random.Random(seed)
    path = folder / f"many-{seed}"
    for world_size in (3, 2, 4):
        reading, writing = os.pipe()
        children = [start(write, path, writing, rank, world_size) for rank in range(world_size)]
        os.close(writing)
        killed_after(children, reading, chance.randrange(20), chance)
        unplanned += world_size
    children = [start(write, path, None, rank, 2) for rank in range(2)]
    assert [ended(child) for child in children] == [False, False]
    merge_manifests(path)
    check(path, ("many", seed))
print(planned, unplanned)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_writers_lose_and_double_nothing(tmp_path):
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": str(here.parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", KILLED_WRITERS, str(tmp_path), str(here)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert process.returncode == 0, process.stderr
    planned, unplanned = map(int, process.stdout.split())
    # 14 shards, each: save, flush, rename, flush the folder, and as much for its manifest.
    assert planned >= 14 * 8
    assert unplanned == 15 * 4 + 6 * (3 + 2 + 4)


def test_one_writer_per_rank_and_no_merge_while_one_writes(tmp_path):
    from region_samples import facts, regions_of

    from ovd_d2.errors import OVDError
    from ovd_d2.region_store import RegionStore, RegionStoreWriter, merge_manifests

    first = RegionStoreWriter(tmp_path, facts(), rank=0, world_size=2)
    second = RegionStoreWriter(tmp_path, facts(), rank=1, world_size=2)
    with pytest.raises(OVDError, match="another process is writing rank 1"):
        RegionStoreWriter(tmp_path, facts(), rank=1, world_size=2)
    assert first.remaining(range(5)) == [0, 2, 4]
    assert second.remaining(range(5)) == [1, 3]
    first.append(0, regions_of(0))
    second.append(1, regions_of(1))
    first.close()
    with pytest.raises(OVDError, match="another process is writing rank 1"):
        merge_manifests(tmp_path)
    second.close()
    with pytest.raises(OVDError, match="unfinished"):
        RegionStore(tmp_path)
    assert merge_manifests(tmp_path).images == 2
    assert merge_manifests(tmp_path).images == 2  # harmless
    assert list(RegionStore(tmp_path)) == [0, 1]


def test_merging_removes_what_a_process_left_whose_rank_never_came_back(tmp_path):
    from region_samples import facts, regions_of

    from ovd_d2.region_store import RegionStoreWriter, merge_manifests, verify

    for rank in (0, 1):
        with RegionStoreWriter(tmp_path, facts(), rank=rank, world_size=2) as writer:
            writer.append(rank, regions_of(rank))
    left = (".manifest.rank00003.json.partial", ".rank00003-000000.safetensors.partial")
    for name in left:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.json").write_text("mine")
    assert merge_manifests(tmp_path).images == 2
    assert not any((tmp_path / name).exists() for name in left)
    assert (tmp_path / "notes.json").exists()
    assert verify(tmp_path) == []


def test_two_processes_that_both_appended_an_image_are_not_merged(tmp_path):
    from region_samples import facts, regions_of

    from ovd_d2.errors import OVDError
    from ovd_d2.region_store import RegionStoreWriter, merge_manifests

    writers = [RegionStoreWriter(tmp_path, facts(), rank=rank, world_size=2) for rank in (0, 1)]
    for writer in writers:
        writer.append(7, regions_of(7))
        writer.close()
    with pytest.raises(OVDError, match="image 7 is twice .*rank00000-000000.*rank00001-000000"):
        merge_manifests(tmp_path)
