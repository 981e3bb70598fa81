"""Tensors of TorchScript archives, without running their code."""

import pickle
import zipfile

import pytest
import torch
from torch import nn

from ovd_d2.checkpoint import read_state_dict, read_weights_file
from ovd_d2.errors import OVDError
from ovd_d2.files.torchscript import is_torchscript, read_torchscript_tensors


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.small = nn.Parameter(torch.randn(2, 3).half())
        self.sizes = [3, 4]
        self.sides = {"left": 1}
        self.shared = nn.Parameter(torch.randn(4, 3).T)

    def forward(self, x):
        return self.norm(x) @ self.shared + float(self.sizes[0] + self.sides["left"])


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.Sequential(Part(), nn.Linear(4, 3), Part())
        self.register_buffer("count", torch.tensor(7))

    def forward(self, x):
        return self.parts(x) * self.count


@pytest.fixture(params=["script", "trace"])
def archive(request, tmp_path):
    module = Whole().eval()
    path = tmp_path / "module.pt"
    if request.param == "script":
        torch.jit.script(module).save(path)
    else:
        torch.jit.trace(module, torch.randn(2, 3)).save(path)
    return path, module.state_dict()


@pytest.mark.filterwarnings("ignore")
def test_tensors_are_those_of_the_module(archive, monkeypatch):
    path, expected = archive
    monkeypatch.setattr(torch.jit, "load", None)  # is not asked
    found = read_torchscript_tensors(path)
    assert is_torchscript(path) and found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
        assert not found[name].requires_grad
    for read in (read_weights_file, read_state_dict):
        assert read(str(path)).keys() == expected.keys()


def test_other_files_are_not_archives(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    (tmp_path / "text.pt").write_text("hello")
    assert not is_torchscript(tmp_path / "a.pt") and not is_torchscript(tmp_path / "text.pt")


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.filterwarnings("ignore")
def test_code_in_the_pickle_or_cut_files_are_refused(archive, tmp_path):
    path, _ = archive
    evil, marker = tmp_path / "evil.pt", tmp_path / "marker"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(evil, "w") as target:
        for name in source.namelist():
            bad = pickle.dumps(Payload(marker), protocol=2)
            target.writestr(name, bad if name.endswith("/data.pkl") else source.read(name))
    with pytest.raises(ValueError, match="not part of TorchScript"):
        read_torchscript_tensors(evil)
    cut = tmp_path / "cut.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(cut, "w") as target:
        for name in source.namelist():
            if not name.endswith("/data/0"):
                target.writestr(name, source.read(name))
    empty = tmp_path / "empty.pth"
    empty.touch()
    for broken in (evil, cut, empty):
        with pytest.raises(OVDError, match=f"^[^ ]*{broken.name} cannot be read as weights: [^/]"):
            read_state_dict(str(broken))
    assert not marker.exists()
