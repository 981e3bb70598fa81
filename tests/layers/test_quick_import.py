"""Detecting leaves PyTorch's compiler out, and whoever asks for it gets the real one."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.layers import wrappers

import ovd_d2
from ovd_d2.layers import quick_import

FILE = str(Path(ovd_d2.__file__).parent / "layers" / "quick_import.py")
ALONE = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("quick", {FILE!r})
quick = importlib.util.module_from_spec(spec)
sys.modules["quick"] = quick
spec.loader.exec_module(quick)
"""


def python(code: str) -> str:
    """What a new process prints; the tests' own server has imported all of it."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_compiler_is_imported_when_called():
    assert python("""
import sys, ovd_d2, torch
from detectron2.layers import Conv2d
from ovd_d2.modeling.backbone.timm_fpn import timm_that_has
from torchvision.ops import roi_align
timm_that_has("resnet18")
conv = Conv2d(3, 4, 3).train()
conv(torch.zeros(1, 3, 8, 8))
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
ask = sys.modules[roi_align.__module__].is_compile_supported
print(ask.__module__, ask("cpu"))
real = sys.modules["torch._dynamo.utils"].is_compile_supported
print(real.__module__, real("cpu"), real is torch._dynamo.utils.is_compile_supported)
""").splitlines() == [
        "[]", "ovd_d2.layers.quick_import True", "torch._dynamo.utils True True"
    ]  # fmt: skip


def test_detectron2_knows_that_it_is_compiled():
    def told(x):
        return x + wrappers.check_if_dynamo_compiling()

    zero = torch.zeros(1)
    assert told(zero).item() == 0
    assert torch.compile(told, backend="eager")(zero).item() == 1


@pytest.mark.parametrize(
    "called",
    ["is_compile_supported('cpu')", "torch.compiler.disable(lambda: 1)()",
     "torch.compiler.disable()(len)"],
)  # fmt: skip
def test_what_is_called_at_once_is_the_real_one(tmp_path, monkeypatch, called):
    (tmp_path / "caller.py").write_text(
        f"import torch\nfrom torch._dynamo.utils import is_compile_supported\ngot = {called}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in (quick_import.COMPILER, quick_import.UTILS):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(torch, "_dynamo", raising=False)
    imported, plain = [], importlib.import_module

    def import_module(name, package=None):
        if name not in (quick_import.COMPILER, quick_import.UTILS):
            return plain(name, package)
        assert name not in sys.modules  # nothing stands in for it
        imported.append(name)
        return Answers

    monkeypatch.setattr(importlib, "import_module", import_module)
    quick_import.quick_import("caller")
    assert sys.modules.pop("caller").got and imported


class Answers:
    """In the place of the compiler, whose import takes seconds and cannot be undone."""

    @staticmethod
    def is_compile_supported(device_type):
        return device_type

    @staticmethod
    def disable(fn, recursive, reason):
        return fn or (lambda fn: fn)


def test_a_package_that_asks_for_more_gets_it(tmp_path, monkeypatch):
    asked = "from torch._dynamo.eval_frame import skip_code"
    (tmp_path / "asker.py").write_text(f"""
import torch
from torch._dynamo.utils import is_compile_supported
@torch.compiler.disable
def length(*words, **more):
    "How many."
    return torch.compiler.is_compiling(), len(words) + len(more)
before = "torch._dynamo.eval_frame" in __import__("sys").modules
{asked}
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert python(f"""{ALONE}
asker = quick.quick_import("asker")
print(asker.before, asker.length.__name__, asker.length.__doc__)
import torch
{asked} as real
print(asker.skip_code is real, isinstance(sys.modules["torch._dynamo"], quick._StandIn))
print(asker.length(1, 2, b=3), asker.is_compile_supported("cpu"))
ran = torch.compile(lambda x: x + asker.length(x)[1], backend="eager")
print(ran(torch.ones(1)).item())
""").splitlines() == ["False length How many.", "True False", "(False, 3) True", "2.0"]
