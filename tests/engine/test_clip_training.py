"""CLIP through the trainer: pairs in, checkpoints, resuming, classification as the test, export."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import warm_processes
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import ovd_d2.encoders.registry as schemes
from ovd_d2.cli.app import main
from ovd_d2.encoders import EncoderScheme, build_image_text_model
from ovd_d2.engine import OpenVocabTrainer
from ovd_d2.engine.setup import check_config, load_config
from ovd_d2.errors import OVDError

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"red": (210, 40, 40), "green": (40, 190, 50), "blue": (40, 60, 220)}
OBJECTS = "clip_training_objects"


class ColourWords:
    """Sentences with a colour word -> one axis each; other sentences -> the fourth."""

    encoder_id, dim = "colours@0123456789ab", 4

    def encode(self, texts):
        rows = torch.zeros(len(texts), 4)
        for row, text in zip(rows, texts):
            row[next((i for i, name in enumerate(COLOURS) if name in text), 3)] = 1
        return rows


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    entry = EncoderScheme(lambda _: ColourWords.encoder_id, lambda *_: ColourWords(), rest=None)
    monkeypatch.setitem(schemes._SCHEMES, "colours", entry)
    folder = tmp_path / "pairs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    records = []
    for number in range(24):
        name = list(COLOURS)[number % 3]
        pixels = np.clip(rng.normal(COLOURS[name], 25, (40, 50, 3)), 0, 255).astype(np.uint8)
        path = folder / f"{number:02d}.png"
        Image.fromarray(pixels).save(path)
        path.with_suffix(".txt").write_text(f"a {name} thing")
        records.append({"file_name": str(path), "image_id": number, "label": number % 3,
                        "box": (5, 5, 45, 35)})  # fmt: skip
    DatasetCatalog.register(OBJECTS, lambda: records)
    MetadataCatalog.get(OBJECTS).set(
        thing_classes=list(COLOURS), is_novel=[False, False, True], evaluator_type="classification"
    )
    yield folder
    DatasetCatalog.remove(OBJECTS)
    MetadataCatalog.remove(OBJECTS)


def config(folder, out, *opts):
    return load_config("", [
        "MODEL.META_ARCHITECTURE", "CLIP", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "",
        "MODEL.CLIP.IMAGE_TOWER", "timm", "MODEL.CLIP.TIMM.NAME", "resnet10t",
        "MODEL.CLIP.IMAGE_SIZE", "32", "MODEL.CLIP.EMBED_DIM", "4",
        "MODEL.CLIP.TEXT_TOWER", "locked:colours", "MODEL.CLIP.IGNORE_EQUAL_CAPTIONS", "True",
        "MODEL.OPEN_VOCAB.PROMPTS", "name", "INPUT.FORMAT", "RGB",
        "INPUT.MAPPER", "ImageTextPairMapper", "INPUT.PAIRS.COLOR_JITTER", "0.1",
        "DATASETS.TRAIN", f"('pairs:{folder}',)", "DATASETS.TEST", f"('{OBJECTS}',)",
        "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.OPTIMIZER", "ADAMW",
        "SOLVER.BASE_LR", "0.002", "SOLVER.WARMUP_ITERS", "0", "SOLVER.STEPS", "()",
        "SOLVER.MAX_ITER", "16", "SOLVER.CHECKPOINT_PERIOD", "4", "OUTPUT_DIR", str(out),
        "SEED", "2", *opts,
    ])  # fmt: skip


def train(cfg, resume=False, stop_at=None):
    out = Path(cfg.OUTPUT_DIR)
    out.mkdir(exist_ok=True)
    (out / "config.yaml").write_text(cfg.dump())
    check_config(cfg)
    torch.manual_seed(2)
    trainer = OpenVocabTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    if stop_at is not None:
        trainer.max_iter = stop_at
    trainer.train()
    return trainer


@pytest.fixture
def trained(pairs, tmp_path):
    return train(config(pairs, tmp_path / "whole"))


def test_it_learns_and_the_evaluator_reports_base_and_novel(trained):
    results = json.loads((Path(trained.cfg.OUTPUT_DIR) / "results.json").read_text())
    metrics = results["results"][OBJECTS]["classification"]
    assert metrics["top1"] > 90 and {"top1_base", "top1_novel", "top5"} <= metrics.keys()
    assert trained.model.vocabulary is None  # the test's classes are gone again
    losses = [v for v, _ in trained.storage.history("total_loss").values()]
    assert losses[-1] < losses[0]


def test_resumed_training_is_the_same(pairs, tmp_path, trained):
    cfg = config(pairs, tmp_path / "halves")
    train(cfg, stop_at=8)
    for name in ("model_final.pth", "results.json"):
        (tmp_path / "halves" / name).unlink(missing_ok=True)
    (tmp_path / "halves/last_checkpoint").write_text("model_0000007.pth")
    resumed = train(cfg, resume=True)
    assert resumed.start_iter == 8
    for key, value in trained.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


def test_export_command_and_what_it_writes(trained, tmp_path, capsys):
    checkpoint = Path(trained.cfg.OUTPUT_DIR) / "model_final.pth"
    out = tmp_path / "teacher.safetensors"
    with pytest.raises(SystemExit) as done:
        main(["clip", "export", str(checkpoint), "--out", str(out), "--note", "licence=none"])
    assert done.value.code in (0, None)
    facts = json.loads(out.with_suffix(".json").read_text())
    assert facts["licence"] == "none" and facts["training"]["iterations"] == 16
    assert facts["zero_shot_in_percent"][f"{OBJECTS}, crops of 1.0 x the box"]["top1"] > 90
    assert facts["encoder_id"] in capsys.readouterr().out
    teacher = build_image_text_model(f"exported:{out}")
    images = torch.stack([torch.full((3, 32, 32), 90, dtype=torch.uint8)])
    with torch.no_grad():
        expected = trained.model.eval().encode_image(images)
    torch.testing.assert_close(teacher.encode_image(images), expected, atol=5e-3, rtol=0)


def test_an_export_replaces_nothing_else_and_leaves_nothing_half(
    trained, tmp_path, capsys, monkeypatch
):
    from ovd_d2.jobs import export_teacher as teacher_export

    checkpoint = str(Path(trained.cfg.OUTPUT_DIR) / "model_final.pth")
    (tmp_path / "results.json").write_text('{"AP": 1}')
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as done:
        main(["clip", "export", checkpoint, "--out", str(tmp_path / "results.safetensors")])
    assert done.value.code == 2 and "results.json" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_text() == '{"AP": 1}'

    def broken(*arguments):
        raise OVDError("the crops are gone")

    monkeypatch.setattr(teacher_export, "_accuracy", broken)
    with pytest.raises(OVDError, match="crops are gone"):
        teacher_export.export_checkpoint(checkpoint, tmp_path / "deep/t.safetensors")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("MODEL.CLIP.TEXT_TOWER", "locked:colours", "MODEL.CLIP.EMBED_DIM", "6"),
            "is not of a CLIP",
        ),
        (("MODEL.META_ARCHITECTURE", "CLIPP"), "unknown part"),
    ],
)
def test_export_of_another_model_is_refused(pairs, tmp_path, capsys, change, message):
    out = tmp_path / "run"
    out.mkdir()
    cfg = config(pairs, out, *change)
    (out / "config.yaml").write_text(cfg.dump())
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "CLIP"])
    torch.save(OpenVocabTrainer.build_model(cfg).state_dict(), out / "model_final.pth")
    words = ["clip", "export", str(out / "model_final.pth")]
    words += ["--out", str(tmp_path / "x.safetensors")]
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 2 and message in capsys.readouterr().err
    (out / "config.yaml").unlink()
    with pytest.raises(SystemExit):
        main(words)
    assert "config.yaml does not exist" in capsys.readouterr().err


def test_pairs_that_are_not_there_stop_before_anything_is_written(pairs, tmp_path):
    cfg = config(tmp_path / "nowhere", tmp_path / "out")
    check_config(cfg)
    with pytest.raises(OVDError, match="nowhere does not exist"):
        OpenVocabTrainer(cfg)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_train_net_ends_with_one_sentence_on_a_bad_pairs_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"file_name": "a.png", "caption": "c"}\n{"file_name": "b.png"}\n')
    done = warm_processes.run(
        [sys.executable, "train_net.py", "--config-file", "configs/mini/clip_teacher.yaml",
         "DATASETS.TRAIN", f"('pairs:{path}',)", "DATASETS.TEST", "()",
         "OUTPUT_DIR", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {path} line 2 has no caption")
    assert not (tmp_path / "out").exists()
