"""``ovd doctor`` in whole and in crippled environments."""

import json
import os
import subprocess
import sys

import pytest
import warm_processes


def doctor(crippled="", *words, run=warm_processes.run, **environment):
    """(exit code, stdout, stderr) of ``ovd doctor`` after the python code ``crippled``."""
    code = (
        f"import sys; sys.argv = ['ovd', 'doctor', *{list(words)!r}]\n{crippled}\n"
        "from ovd_d2.cli.app import main\nmain()"
    )
    result = run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    return result.returncode, result.stdout, result.stderr


def parts(stdout):
    return {part["name"]: part for part in json.loads(stdout)["parts"]}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    (folder / "coco/train2017").mkdir(parents=True)
    return doctor("", "--json", DETECTRON2_DATASETS=str(folder), OVD_D2_CACHE=str(folder / "new"))


def test_healthy_environment(healthy):
    code, stdout, stderr = healthy
    assert code == 0, stderr
    assert json.loads(stdout)["ok"] is True
    found = parts(stdout)
    for name in ("ovd_d2", "python", "torch", "torchvision", "detectron2", "device", "hotcoco"):
        assert found[name]["status"] == "ok"
    assert found["python"]["detail"].startswith(f"3.{sys.version_info.minor}.")
    assert "cores" in found["device"]["detail"]
    assert found["images COCO train2017"]["status"] == "ok"


def test_everything_missing_names_what_gets_it(healthy):
    missing = [part for part in parts(healthy[1]).values() if part["status"] != "ok"]
    assert all(part["fix"] for part in missing)
    assert parts(healthy[1])["data set mini-v1"]["fix"] == "ovd mini build"


def test_without_detectron2():
    code, stdout, stderr = doctor("sys.modules['detectron2'] = None", "--json")
    assert code == 1, stderr
    assert json.loads(stdout)["ok"] is False
    part = parts(stdout)["detectron2"]
    assert part["status"] == "missing"
    assert part["fix"].startswith("uv pip install --no-deps --python-version 3.10 sal-detectron2==")


def test_table_shows_a_broken_torchvision_and_an_unwritable_cache(tmp_path):
    """A torchvision that does not fit torch raises RuntimeError when imported."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    (tmp_path / "file").touch()
    crippled = f"sys.path.insert(0, {str(tmp_path)!r})"
    code, stdout, stderr = doctor(
        crippled, run=subprocess.run, OVD_D2_CACHE=str(tmp_path / "file/cache")
    )
    assert code == 1, stderr
    row = next(line for line in stdout.splitlines() if line.startswith(" torchvision"))
    assert "MISSING" in row
    assert "operator torchvision::nms does not exist" in row
    assert "pip install torch torchvision" in row
    row = next(line for line in stdout.splitlines() if line.startswith(" cache"))
    assert "MISSING" in row
    assert "export OVD_D2_CACHE=" in row


def test_what_runs_without_compiled_operators_is_tried(healthy):
    found = parts(healthy[1])
    assert "not needed" not in healthy[1]
    deformable = found["deformable convolution"]
    assert deformable["status"] == "ok"
    assert "mask_rcnn_R_50_FPN_3x_dconv_c3-c5.yaml" in deformable["detail"]
    rotated = found["rotated boxes"]
    assert "zoo configs: none" in rotated["detail"]
    assert ("need compiled ops" in rotated["detail"]) == (
        "without" in found["detectron2"]["detail"]
    )
    assert found["LVIS evaluation"]["status"] == "ok"
    assert "Detectron2's LVISEvaluator, lvis-api, hotcoco" in found["LVIS evaluation"]["detail"]


def test_a_broken_lvis_is_seen():
    """The package is there and imports; only running it shows that it cannot evaluate."""
    crippled = "import ovd_d2.evaluation.lvis_api as api; api.mend = lambda: None"
    crippled += "\nimport ovd_d2.evaluation.lvis_backends as b; b.mend = api.mend"
    code, stdout, stderr = doctor(crippled, "--json")
    assert code == 1, stderr
    part = parts(stdout)["LVIS evaluation"]
    assert part["status"] == "missing"
    assert "np.float" in part["detail"] or "no attribute 'float'" in part["detail"]
    assert "lvis==0.5.3" in part["fix"]
