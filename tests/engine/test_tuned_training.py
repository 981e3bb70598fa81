"""``train_net.py`` with MODEL.TUNE: adapters resume exactly and end as an ordinary checkpoint."""

import logging
import sys

import pytest
import torch
from tiny_detector import OPTIONS, ROOT, register, run_trainer, tiny_config, write_dataset
from tiny_detectors import save_dino

from ovd_d2.engine import argument_parser

pytest.importorskip("transformers")
pytest.importorskip("peft")
sys.path.insert(0, str(ROOT))


@pytest.fixture
def run(tmp_path):
    """train_net.py in this process on six images, with a tiny Grounding DINO."""
    import train_net

    write_dataset(tmp_path / "data", count=6)
    register(tmp_path / "data")
    torch.manual_seed(0)
    save_dino(tmp_path / "model")
    words = [
        *OPTIONS, "MODEL.META_ARCHITECTURE", "HuggingFaceDetector", "INPUT.FORMAT", "RGB",
        "INPUT.MIN_SIZE_TEST", "0", "MODEL.HUGGINGFACE.SCORE_THRESH_TEST", "0.0",
        "SOLVER.BASE_LR", "0.05", "SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "()",
        "SOLVER.WARMUP_ITERS", "1", "INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MAX_SIZE_TRAIN", "128",
        "MODEL.HUGGINGFACE.MODEL", str(tmp_path / "model"),
    ]  # fmt: skip

    def run(out, *more, flags=()):
        options = [*words, "OUTPUT_DIR", str(tmp_path / out), *more]
        return train_net.main(argument_parser().parse_args([*flags, *options]))

    yield run
    for name in ("fvcore", "detectron2", "ovd_d2"):  # leave no handlers of this test behind
        logging.getLogger(name).handlers.clear()


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def test_adapters_resume_exactly_and_are_merged(tmp_path, run):
    lora = ("MODEL.TUNE.LORA.RANK", "2")
    after = run("whole", *lora)
    torch.manual_seed(3)
    (tmp_path / "broken").mkdir()
    run("broken", *lora)
    for name in ("model_final.pth", "last_checkpoint", "model_0000003.pth"):
        (tmp_path / "broken" / name).unlink()
    torch.manual_seed(4)
    run("broken", *lora, flags=["--resume"])
    whole, broken = (weights(tmp_path / n / "model_final.pth") for n in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)

    # Nothing but the adapted layers has moved, and who opens the file needs no adapters.
    from safetensors.torch import load_file

    published = load_file(tmp_path / "model/model.safetensors")
    moved = {n for n, v in published.items() if not torch.equal(v, whole[f"family.model.{n}"])}
    assert moved and all(n.rpartition(".")[2] == "weight" for n in moved)
    words = {n.split(".")[-2] for n in moved}
    assert {"query", "value", "vision_proj"} <= words and not any("lora" in n for n in whole)
    final = str(tmp_path / "whole/model_final.pth")
    again = run("eval", "MODEL.WEIGHTS", final, flags=["--eval-only"])
    assert again["bbox"]["AP"] == pytest.approx(after["bbox"]["AP"], abs=1e-3, nan_ok=True)


def test_a_resumed_run_has_its_adapters(tmp_path, run, capsys):
    run("out", "MODEL.TUNE.LORA.RANK", "2")
    (tmp_path / "out/model_final.pth").unlink()
    with pytest.raises(SystemExit):
        run("out", flags=["--resume"])
    assert "resume with the MODEL.TUNE.LORA of that run" in capsys.readouterr().err


def test_a_frozen_backbone_stays(tmp_path):
    write_dataset(tmp_path / "data", count=6)
    register(tmp_path / "data")
    cfg = tiny_config(tmp_path / "out", "MODEL.TUNE.FROZEN", '["backbone."]')
    start = run_trainer(tiny_config(tmp_path / "start", "SOLVER.MAX_ITER", "1")).model.state_dict()
    torch.save({"model": start}, tmp_path / "start.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "start.pth")
    end = run_trainer(cfg).model.state_dict()
    same = {name for name in start if torch.equal(start[name], end[name])}
    assert {n for n in start if n.startswith("backbone.")} <= same
    assert any(n.startswith("roi_heads.") for n in set(start) - same)
