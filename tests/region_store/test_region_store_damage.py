"""Damaged shards are named by the reader, by ``verify`` and by the writer, and can be replaced."""

import json
import shutil

import pytest
import torch
from region_samples import facts, regions_of, same, write_store

from ovd_d2.errors import OVDError
from ovd_d2.region_store import RegionStore, RegionStoreWriter, drop_shards, verify

SHARD = "rank00000-000001.safetensors"


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path):
    path.write_bytes(b"")


def _lengthen(path):
    path.write_bytes(path.read_bytes() + b"x")


def _remove(path):
    path.unlink()


def _break_header(path):
    content = bytearray(path.read_bytes())
    content[8:12] = b"\xff\xff\xff\xff"
    path.write_bytes(content)


def _break_header_length(path):
    content = bytearray(path.read_bytes())
    content[:8] = b"\xff" * 8
    path.write_bytes(content)


def _of_another_store(path):
    write_store(path.parent / "other", dim=8)
    shutil.copy(path.parent / "other" / SHARD, path)
    shutil.rmtree(path.parent / "other")
    manifest = path.parent / "manifest.json"
    content = json.loads(manifest.read_text())
    content["shards"][1]["bytes"] = path.stat().st_size
    manifest.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage",
    [_truncate, _empty, _lengthen, _remove, _break_header, _break_header_length, _of_another_store],
)
def test_every_reader_names_the_shard(tmp_path, damage):
    write_store(tmp_path)
    damage(tmp_path / SHARD)
    for read in (RegionStore, lambda path: RegionStoreWriter(path, facts())):
        with pytest.raises(OVDError, match=f"shard .*{SHARD}") as caught:
            read(tmp_path)
        if damage is _truncate:
            assert "truncated" in str(caught.value)
    problems = verify(tmp_path)
    assert [problem.file for problem in problems] == [SHARD]
    assert SHARD in problems[0].what


@pytest.mark.parametrize("part", ["embeddings", "header"])
def test_a_changed_byte_is_found_by_verify(tmp_path, part):
    path = write_store(tmp_path) / SHARD
    content = bytearray(path.read_bytes())
    position = len(content) - 1 if part == "embeddings" else content.index(b"[4, 5") + 1
    content[position] ^= 1
    path.write_bytes(content)
    problems = verify(tmp_path)
    assert [problem.file for problem in problems] == [SHARD]
    assert f"{SHARD} was changed" in problems[0].what


def test_an_image_in_two_shards_is_found(tmp_path):
    write_store(tmp_path)
    shutil.copy(tmp_path / "rank00000-000000.safetensors", tmp_path / SHARD)
    manifest = tmp_path / "manifest.json"
    content = json.loads(manifest.read_text())
    content["shards"][1] = {**content["shards"][0], "file": SHARD}
    content["regions"] = sum(shard["regions"] for shard in content["shards"])
    manifest.write_text(json.dumps(content))
    assert ["holds image 0, which is in" in problem.what for problem in verify(tmp_path)] == [True]
    with pytest.raises(OVDError, match=f"{SHARD} holds an image that is in the store already"):
        RegionStore(tmp_path)
    with pytest.raises(OVDError, match="image 0 is twice"):
        RegionStoreWriter(tmp_path, facts())


def test_a_shard_truncated_after_opening_is_named(tmp_path):
    store = RegionStore(write_store(tmp_path))
    store[0]
    _truncate(tmp_path / SHARD)
    with pytest.raises(OVDError, match=f"{SHARD} is truncated"):
        store[5]


def test_a_dropped_shard_is_built_again(tmp_path):
    write_store(tmp_path)
    _truncate(tmp_path / SHARD)
    drop_shards(tmp_path, [SHARD])
    assert verify(tmp_path) == []
    with RegionStoreWriter(tmp_path, facts()) as writer:
        assert writer.remaining(range(10)) == [4, 5, 6, 7]
        for number in (4, 5, 6, 7):
            writer.append(number, regions_of(number, number % 4))
    store = RegionStore(tmp_path)
    assert all(same(store[number], regions_of(number, number % 4)) for number in range(10))


def test_a_full_disk_is_one_clear_error_and_costs_nothing(tmp_path, monkeypatch):
    import os

    writer = RegionStoreWriter(tmp_path, facts())
    writer.append(0, regions_of(0))
    with monkeypatch.context() as patch:

        def full(_):
            raise OSError(28, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(OVDError, match="shard .* cannot be written .*No space left"):
            writer.flush()
    assert not list(tmp_path.glob(".*.partial"))
    writer.close()
    assert same(RegionStore(tmp_path)[0], regions_of(0))


def test_no_regions_at_all(tmp_path):
    with RegionStoreWriter(tmp_path, facts([])):
        pass
    assert len(RegionStore(tmp_path)) == 0
    with RegionStoreWriter(tmp_path / "b", facts([1], has_scores=True)) as writer:
        writer.append(1, regions_of(0, count=0))
    found = RegionStore(tmp_path / "b")[1]
    assert found.boxes.shape == (0, 4) and found.embeddings.shape == (0, 4)
    assert found.scores.shape == (0,) and found.embeddings.dtype == torch.float16
