"""Checkpoints: atomic, verified, and without code inside."""

import json
import logging
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ovd_d2.checkpoint import TRUST_VARIABLE
from ovd_d2.checkpoint.atomic_checkpointer import AtomicCheckpointer, find_damage
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import atomic_write, write_json


def checkpointer(folder, fill=0.0):
    model = nn.Linear(40, 30)
    nn.init.constant_(model.weight, fill)
    return AtomicCheckpointer(model, str(folder))


def save_series(folder, count=3):
    """Checkpoints 0, 1, 2 whose weights are filled with 0, 1, 2."""
    for i in range(count):
        checkpointer(folder, float(i)).save(f"model_{i:07d}", iteration=i)
        os.utime(folder / f"model_{i:07d}.pth", ns=(i + 1, (i + 1) * 10**9))


def resumed_fill(folder):
    one = checkpointer(folder, -1.0)
    rest = one.resume_or_load("", resume=True)
    values = one.model.weight.unique()
    assert len(values) == 1
    assert rest["iteration"] == int(values)
    return int(values)


def test_round_trip_and_tag(tmp_path):
    save_series(tmp_path)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    assert resumed_fill(tmp_path) == 2
    assert not list(tmp_path.glob(".*"))
    assert find_damage(str(tmp_path / "model_0000002.pth")) is None


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_weight(path):
    with zipfile.ZipFile(path) as archive:
        info = max(archive.infolist(), key=lambda i: i.file_size)
    content = bytearray(path.read_bytes())
    content[info.header_offset + 2000] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("not a checkpoint")


@pytest.mark.parametrize("damage", [truncate, flip_a_weight, empty, text, os.unlink])
def test_falls_back_to_the_newest_that_verifies(tmp_path, caplog, damage):
    save_series(tmp_path)
    damage(tmp_path / "model_0000002.pth")
    with caplog.at_level(logging.WARNING):
        assert resumed_fill(tmp_path) == 1
    if damage is not os.unlink:
        assert "model_0000002.pth is damaged" in caplog.text
    damage(tmp_path / "model_0000001.pth")
    assert resumed_fill(tmp_path) == 0


@pytest.mark.parametrize("tag", ["", "model_9999999.pth", None])
def test_a_broken_tag_does_not_matter(tmp_path, tag):
    save_series(tmp_path)
    if tag is None:
        (tmp_path / "last_checkpoint").unlink()
    else:
        (tmp_path / "last_checkpoint").write_text(tag)
    assert resumed_fill(tmp_path) == 2


def test_the_tag_chooses(tmp_path):
    save_series(tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    assert resumed_fill(tmp_path) == 1


def test_no_intact_checkpoint_is_an_error(tmp_path):
    save_series(tmp_path, 1)
    truncate(tmp_path / "model_0000000.pth")
    with pytest.raises(OVDError, match="No checkpoint in .* is intact"):
        checkpointer(tmp_path).resume_or_load("", resume=True)


def test_nothing_to_resume_loads_the_weights(tmp_path):
    save_series(tmp_path / ".", 1)
    other = checkpointer(tmp_path / "empty", 5.0)
    other.resume_or_load(str(tmp_path / "model_0000000.pth"), resume=True)
    assert other.model.weight.abs().sum() == 0


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    save_series(tmp_path, 1)
    before = (tmp_path / "model_0000000.pth").read_bytes()

    def half_written(data, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(OVDError, match="No space left on device"):
        checkpointer(tmp_path, 3.0).save("model_0000000")
    assert (tmp_path / "model_0000000.pth").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000000.pth"]


def test_killed_while_saving(tmp_path):
    """SIGKILL after half of the bytes: the old file of that name is whole, the partial one goes."""
    save_series(tmp_path, 1)
    child = os.fork()
    if child == 0:

        def killed(data, file):
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), 9)

        torch.save = killed
        checkpointer(tmp_path, 3.0).save("model_0000000")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == 9
    assert (tmp_path / ".model_0000000.pth.partial").exists()
    assert resumed_fill(tmp_path) == 0
    assert not (tmp_path / ".model_0000000.pth.partial").exists()


def test_prune(tmp_path):
    save_series(tmp_path)
    one = checkpointer(tmp_path)
    one.save("model_final")
    one.save("model_best")
    one.prune(0)
    assert len(list(tmp_path.glob("model_*"))) == 5
    one.prune(2)
    assert sorted(p.name for p in tmp_path.glob("model_*")) == [
        "model_0000001.pth", "model_0000002.pth", "model_best.pth", "model_final.pth",
    ]  # fmt: skip


class Marker:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("ending", ["pkl", "pth", "pyth"])
def test_no_code_runs_on_loading(tmp_path, ending):
    marker = tmp_path / "code_ran"
    path = tmp_path / f"evil.{ending}"
    content = {"model": {"weight": torch.zeros(30, 40), "evil": Marker(str(marker))}}
    if ending == "pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(OVDError, match=rf"evil\.{ending}"):
        checkpointer(tmp_path).load(str(path))
    assert not marker.exists()


def test_trusted_pickles_load(tmp_path, monkeypatch):
    path = tmp_path / "zoo.pkl"
    weights = {"weight": torch.ones(30, 40).numpy(), "bias": torch.ones(30).numpy()}
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "somebody"}))
    one = checkpointer(tmp_path)
    with pytest.raises(OVDError, match="--trust"):
        one.load(str(path))
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    one.load(str(path))
    assert one.model.weight.mean() == 1


def test_safetensors_and_plain_state_dicts_load(tmp_path):
    weights = {"weight": torch.full((30, 40), 2.0), "bias": torch.zeros(30)}
    save_file(weights, tmp_path / "w.safetensors")
    torch.save(weights, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        one = checkpointer(tmp_path)
        one.load(str(tmp_path / name))
        assert one.model.weight.mean() == 2


@pytest.mark.parametrize("name", ["gone.pth", "gone.safetensors", "torn.pth", "torn.safetensors"])
def test_unreadable_weights_are_named(tmp_path, name):
    if name.startswith("torn"):
        (tmp_path / name).write_bytes(b"\x00" * 20)
    one = checkpointer(tmp_path)
    for _ in range(2):  # the second time must not trip over state of the first
        with pytest.raises(OVDError, match=name):
            one.load(str(tmp_path / name))


UNFIT = {
    "empty": {},
    "empty_model": {"model": {}},
    "list": [torch.zeros(3)],
    "number": 5,
    "list_model": {"model": [1, 2]},
    "int_keys": {"model": {0: torch.zeros(30, 40)}},
    "numbers": {"model": {"weight": 1.0, "bias": 2.0}},
    "text": {"model": {"weight": "zeros"}},
    "complex": {"weight": torch.zeros(30, 40, dtype=torch.complex64), "bias": torch.zeros(30)},
    "sparse": {"weight": torch.eye(30, 40).to_sparse(), "bias": torch.zeros(30)},
    "meta": {"weight": torch.zeros(30, 40, device="meta"), "bias": torch.zeros(30)},
    "int": {"weight": torch.zeros(30, 40, dtype=torch.long), "bias": torch.zeros(30)},
    "huge": {"weight": torch.full((30, 40), 1e300, dtype=torch.double), "bias": torch.zeros(30)},
    "nan": {"weight": torch.full((30, 40), float("nan")), "bias": torch.zeros(30)},
    "other_names": {"model": {"kernel": torch.zeros(30, 40), "offset": torch.zeros(30)}},
    "other_shape": {"model": {"weight": torch.zeros(40, 30), "bias": torch.zeros(30)}},
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", UNFIT)
def test_what_is_no_weights_of_the_model_is_refused(tmp_path, name, whole):
    path = tmp_path / f"{name}.pth"
    torch.save(UNFIT[name], path)
    one = AtomicCheckpointer(nn.Linear(40, 30), str(tmp_path), whole=whole)
    with pytest.raises(OVDError, match=rf"{name}\.pth") as caught:
        one.load(str(path))
    assert "\n" not in str(caught.value)


def test_double_weights_load(tmp_path):
    torch.save(
        {k: v.double() for k, v in nn.Linear(40, 30).state_dict().items()}, tmp_path / "w.pth"
    )
    one = checkpointer(tmp_path)
    one.load(str(tmp_path / "w.pth"))
    assert one.model.weight.dtype == torch.float32 and one.model.weight.abs().sum() > 0


@pytest.mark.parametrize("content", [[], 5, {"model": 5}, {"model": {"weight": "text"}}, {}])
def test_trusted_pickles_of_anything_else_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(OVDError, match=r"zoo\.pkl"):
        checkpointer(tmp_path).load(str(path))
    path.write_bytes(b"")
    with pytest.raises(OVDError, match=r"zoo\.pkl"):
        checkpointer(tmp_path).load(str(path))


def test_whole_weights_cannot_be_left_out(tmp_path):
    one = AtomicCheckpointer(nn.Linear(40, 30), str(tmp_path), whole=True)
    with pytest.raises(OVDError, match="MODEL.WEIGHTS is empty"):
        one.resume_or_load("", resume=True)


class Part:
    """Something with a state that only itself understands."""

    def state_dict(self):
        return {"steps": 3}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def test_a_run_of_another_network_is_not_resumed(tmp_path):
    save_series(tmp_path, 1)
    other = AtomicCheckpointer(nn.Linear(40, 31), str(tmp_path))
    with pytest.raises(OVDError, match=r"weight has shape \(30, 40\), the model's is \(31, 40\)"):
        other.resume_or_load("", resume=True)
    whole_run = AtomicCheckpointer(nn.Linear(40, 30), str(tmp_path), trainer=Part())
    with pytest.raises(OVDError, match="no run to resume"):
        whole_run.resume_or_load("", resume=True)
    whole_run.save("model_0000001")
    torch.save({"model": nn.Linear(40, 30).state_dict(), "trainer": {"epochs": 2}},
               tmp_path / "model_0000002.pth")  # fmt: skip
    whole_run.tag_last_checkpoint("model_0000002.pth")
    with pytest.raises(OVDError, match=r"model_0000002\.pth .*'steps'"):
        whole_run.resume_or_load("", resume=True)


def test_how_many_weights_were_found_is_logged(tmp_path, caplog):
    torch.save(nn.Linear(40, 30).state_dict(), tmp_path / "w.pth")
    with caplog.at_level(logging.INFO, logger="ovd_d2"):
        checkpointer(tmp_path).load(str(tmp_path / "w.pth"))
    assert f"2 of 2 weights of the model found in {tmp_path / 'w.pth'}" in caplog.text


def test_atomic_write_and_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": float("nan"), "y": torch.tensor(2), 3: (1.5,)})
    assert json.loads(path.read_text()) == {"x": None, "y": 2, "3": [1.5]}
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.write("no bytes")
    assert "null" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
