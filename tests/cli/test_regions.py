"""``ovd regions build`` as a process: killed, gone on with, shared by two, refused."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import warm_processes

from ovd_d2.cli.app import main
from ovd_d2.region_store import RegionStore, verify

OVD = str(Path(sys.executable).with_name("ovd"))
DATASET = "mini_v1_val"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "language"))
    import tiny_clip_models

    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    torch.save(tiny_clip_models.openai_clip_model().state_dict(), path)
    return f"openai-clip:{path}"


def words(encoder, out, *more):
    return ["regions", "build", "--dataset", DATASET, "--proposals", "gt", "--encoder", encoder,
            "--out", str(out), "--topk", "2", "--crops", "1x", *more]  # fmt: skip


def environment(mini_root):
    return {**os.environ, "DETECTRON2_DATASETS": str(mini_root.parent), "OMP_NUM_THREADS": "1"}


def safe_images(store):
    """How many images a kill can no longer take away."""
    parts = [json.loads(path.read_text()) for path in store.glob("manifest.rank*.json")]
    return sum(part["images"] for part in parts)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_twice_and_finished_by_two_processes(tmp_path, mini_root, encoder):
    """The store holds what that of a run that nobody killed holds."""
    env, store = environment(mini_root), tmp_path / "store"
    known = 0
    for _ in range(2):
        # Every shard is flushed at once and batches are small, so that kills come in between.
        slow = words(encoder, store, "--batch", "1", "--save-every", "0")
        with open(tmp_path / "log", "wb") as log:
            process = warm_processes.start([OVD, *slow], env=env, stdout=log, stderr=log)
            deadline = time.monotonic() + 100
            while process.poll() is None and safe_images(store) < known + 20:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            process.kill()
            assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
        assert known + 20 <= safe_images(store) < 400
        known = safe_images(store)
        assert not (store / "manifest.json").exists()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc-per-node", "2", "-m", "ovd_d2.cli.app"]  # fmt: skip
    ran = warm_processes.run(
        [*torchrun, *words(encoder, store)], env=env, capture_output=True, text=True, timeout=200
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("regions/s) by the first of the processes") == 1
    reference = tmp_path / "reference"
    ran = warm_processes.run(
        [OVD, *words(encoder, reference)], env=env, capture_output=True, text=True, timeout=200
    )
    assert ran.returncode == 0, ran.stderr
    assert "400 images and" in ran.stdout and "regions/s)" in ran.stdout
    found, expected = RegionStore(store), RegionStore(reference)
    assert sorted(found) == sorted(expected) and len(found) == 400
    assert verify(store) == []
    for image_id in expected:
        assert torch.equal(found[image_id].boxes, expected[image_id].boxes)
        # Other batches, other rounding: at most the last of fp16's 11 bits.
        torch.testing.assert_close(
            found[image_id].embeddings, expected[image_id].embeddings, atol=1e-3, rtol=0
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--dataset", "mini_v1_vla"], "mini_v1_vla"),
        (["--proposals", "json:/nowhere.json"], "--proposals json:/nowhere.json cannot be read"),
        (["--proposals", "rpn:/nowhere/model.pth"], "needs /nowhere/model.pth"),
        (["--encoder", "minilm"], "encoder 'minilm' reads no images; write openai-clip:"),
    ],
)
def test_bad_input_is_one_line(tmp_path, mini_root, capsys, monkeypatch, changes, message):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as exit_info:
        main([*words("openai-clip:/nowhere.pt", tmp_path / "store"), *changes])
    captured = capsys.readouterr()
    assert exit_info.value.code == 2
    errors = captured.err.strip().splitlines()
    assert errors[-1].startswith("error: ") and message in errors[-1]
    assert not (tmp_path / "store").exists()


def test_progress_with_speed_and_rest(tmp_path, capsys, monkeypatch):
    from ovd_d2.cli.regions import ImageBar

    with ImageBar(True) as bar:
        bar.tell(40, 100)
        bar._bar.delay = 0  # the bar shows after five seconds
        bar._bar.start_t -= 10
        bar.tell(60, 100)
        bar._bar.refresh()
    shown = capsys.readouterr().err
    assert "60/100" in shown and "image/s" in shown
    # 20 images in 10 s: those of the earlier run are not counted. 40 images are left.
    assert "00:10<00:20" in shown or "00:10<00:19" in shown
    with ImageBar(False) as bar:
        bar.tell(0, 10)
    assert capsys.readouterr().err == ""


def test_inspect_and_verify_a_built_store(tmp_path, mini_root, capsys, monkeypatch, encoder):
    """From the command that builds to those that look."""
    from ovd_d2.jobs import build_region_store as module

    monkeypatch.delenv("RANK", raising=False)
    write = module.write_regions
    monkeypatch.setattr(  # ten images are enough
        module, "write_regions", lambda records, *rest, **more: write(records[:10], *rest, **more)
    )
    store = tmp_path / "store"
    for command in (words(encoder, store), ["regions", "inspect", str(store)],
                    ["regions", "verify", str(store)]):  # fmt: skip
        with pytest.raises(SystemExit) as exit_info:
            main(command)
        assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert "10 images and" in text and "crop 1x" in text
    assert "proposals: gt, top 2, no scores" in text and "state:     finished" in text
    assert "10 images" in text and "all intact" in text
    shard = next(store.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(SystemExit) as exit_info:
        main(["regions", "verify", str(store)])
    assert exit_info.value.code == 1
    assert shard.name in capsys.readouterr().out
