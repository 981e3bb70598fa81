"""The main job on real images: ``train_net.py`` and a yaml of ``configs/mini``, as processes."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import warm_processes
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage

from ovd_d2 import add_ovd_config
from ovd_d2.engine.trainer import OpenVocabTrainer

ROOT = Path(__file__).parents[2]


def train_net(config: str, *words: str, check: bool = True, **environment: str):
    """``python train_net.py --config-file configs/mini/CONFIG ...`` in the checkout."""
    command = [sys.executable, "train_net.py", "--config-file", f"configs/mini/{config}", *words]
    done = warm_processes.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280,
        env={**os.environ, **environment},
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_masks_train_evaluate_and_reevaluate_to_the_same_numbers(cut_mini, tmp_path):
    """Boxes and class-agnostic masks, base and novel AP; --eval-only repeats them exactly."""
    out, data = tmp_path / "run", {"DETECTRON2_DATASETS": str(cut_mini.parent)}
    train_net(
        "vild_text_mask.yaml", "OUTPUT_DIR", str(out), "SOLVER.MAX_ITER", "4",
        "SOLVER.WARMUP_ITERS", "2", "DATASETS.TEST", "('mini_v1_val',)",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "5", **data,
    )  # fmt: skip
    trained = json.loads((out / "results.json").read_text())
    assert trained["iteration"] == 4
    results = trained["results"]["mini_v1_val"]
    for task in ("bbox", "segm"):
        for metric in ("AP", "AP_base", "AP_novel", "AP50_base", "AP50_novel"):
            assert 0 <= results[task][metric] <= 100, (task, metric)
    again = tmp_path / "again"
    train_net(
        "vild_text_mask.yaml", "--eval-only", "MODEL.WEIGHTS", str(out / "model_final.pth"),
        "OUTPUT_DIR", str(again), "DATASETS.TEST", "('mini_v1_val',)",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "5", **data,
    )  # fmt: skip
    repeated = json.loads((again / "results.json").read_text())["results"]["mini_v1_val"]
    assert repeated == results


@pytest.mark.slow
@pytest.mark.parametrize("config", ["vild_text.yaml", "base_closed_set.yaml", "rkd_base.yaml"])
def test_every_kind_of_classifier_learns(config, mini_root, tmp_path):
    """Twenty steps on four real images halve what classifying their regions costs at the start."""
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/mini" / config))
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.SOLVER.IMS_PER_BATCH = 4
    trainer = OpenVocabTrainer(cfg)
    batch = next(iter(trainer.build_train_loader(cfg)))
    losses = []
    with EventStorage():
        for _ in range(20):
            values = trainer.model(batch)
            losses.append(values["loss_cls"].item())
            trainer.optimizer.zero_grad()
            sum(values.values()).backward()
            trainer.optimizer.param_groups[0]["lr"] = 1e-3
            trainer.optimizer.step()
    assert np.mean(losses[-3:]) < 0.5 * losses[0], losses


BAD = {
    "unknown key": (["MODEL.OPEN_VOCAB.VOCABULARI", "x"], "MODEL.OPEN_VOCAB.VOCABULARI"),
    "no vocabulary file": (["MODEL.OPEN_VOCAB.VOCABULARY", "nowhere.txt"], "nowhere.txt"),
    "embeddings of another width": (["MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS", "{npy}"], "EMBED_DIM"),
    "width of another encoder": (["MODEL.OPEN_VOCAB.EMBED_DIM", "512"], "EMBED_DIM"),
    "unknown encoder": (["MODEL.OPEN_VOCAB.TEXT_ENCODER", "word2vec"], "word2vec"),
    "json without categories": (["MODEL.OPEN_VOCAB.VOCABULARY", "{json}"], "names.json"),
    "unregistered data set": (["DATASETS.TRAIN", "('mini_v9',)"], "mini_v9"),
    "class-specific boxes": (["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "False"], "CLS_AGNOSTIC"),
    "no such weights": (["MODEL.WEIGHTS", "nowhere.pth"], "nowhere.pth"),
}


@pytest.fixture
def run_here(monkeypatch, capsys):
    """``train_net.py`` in this process: (exit code, last line on stderr)."""

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.chdir(ROOT)
        monkeypatch.syspath_prepend(str(ROOT))
        import train_net as module

        args = module.argument_parser().parse_args(["--config-file", *words])
        with pytest.raises(SystemExit) as ended:
            module.launch(module.main, args)
        return ended.value.code, capsys.readouterr().err.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_code_2(case, run_here, mini_root, tmp_path):
    opts, named = BAD[case]
    np.save(tmp_path / "wrong.npy", np.ones((160, 7), dtype=np.float16))
    (tmp_path / "names.json").write_text('{"images": []}')
    files = {"npy": tmp_path / "wrong.npy", "json": tmp_path / "names.json"}
    out = tmp_path / "out"
    code, line = run_here(
        "configs/mini/vild_text.yaml", "OUTPUT_DIR", str(out), *[o.format(**files) for o in opts]
    )
    assert code == 2
    assert line.startswith("error: ") and named in line, line
    assert not out.exists()


@pytest.mark.slow
def test_bad_input_as_a_process(tmp_path):
    """No traceback, nothing written; a benchmark that was not built says how to build it."""
    out = tmp_path / "out"
    done = train_net(
        "vild_text.yaml", "OUTPUT_DIR", str(out), check=False,
        DETECTRON2_DATASETS=str(tmp_path / "nothing"),
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "ovd mini build" in done.stderr.strip().splitlines()[-1]
    assert not out.exists()
