"""``train_net.py`` evaluates zero-shot detectors of transformers as they are, and trains some."""

import logging
import sys

import pytest
import torch
from tiny_detector import OPTIONS, ROOT, register, write_dataset
from tiny_detectors import save_dino, save_owl

from ovd_d2.engine import argument_parser

pytest.importorskip("transformers")
sys.path.insert(0, str(ROOT))
OF_ALL = ["MODEL.META_ARCHITECTURE", "HuggingFaceDetector", "INPUT.FORMAT", "RGB",
          "INPUT.MIN_SIZE_TEST", "0", "MODEL.HUGGINGFACE.SCORE_THRESH_TEST", "0.0",
          "SOLVER.BASE_LR", "0.001", "SOLVER.MAX_ITER", "2",
          "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "1"]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """train_net.py in this process on six images, with the model of a folder."""
    import train_net

    write_dataset(tmp_path / "data", count=6)
    register(tmp_path / "data")

    def run(folder, *words):
        model = ["MODEL.HUGGINGFACE.MODEL", str(folder), "OUTPUT_DIR", str(tmp_path / "out")]
        return train_net.main(
            argument_parser().parse_args([*words[:1], *OPTIONS, *OF_ALL, *model, *words[1:]])
        )

    yield run
    for name in ("fvcore", "detectron2", "ovd_d2"):  # leave no handlers of this test behind
        logging.getLogger(name).handlers.clear()


def test_is_trained_and_evaluated(tmp_path, run):
    torch.manual_seed(0)
    save_dino(tmp_path / "model")
    before = run(tmp_path / "model", "--eval-only")
    assert 0 <= before["bbox"]["AP"] <= 100
    after = run(tmp_path / "model", "--num-gpus=0")
    weights = tmp_path / "out/model_final.pth"
    again = run(tmp_path / "model", "--eval-only", "MODEL.WEIGHTS", str(weights))
    assert again["bbox"]["AP"] == pytest.approx(after["bbox"]["AP"], nan_ok=True)
    state = torch.load(weights, weights_only=True)["model"]
    name = "family.model.model.text_projection.weight"
    from safetensors.torch import load_file

    published = load_file(tmp_path / "model/model.safetensors")["model.text_projection.weight"]
    assert not torch.equal(state[name], published)


def test_a_family_without_a_loss_says_so(tmp_path, run, capsys):
    save_owl(tmp_path / "model")
    assert 0 <= run(tmp_path / "model", "--eval-only")["bbox"]["AP"] <= 100
    with pytest.raises(SystemExit):
        run(tmp_path / "model", "--num-gpus=0")
    assert (
        "owlv2 models cannot be trained: transformers has no loss for them"
        in capsys.readouterr().err
    )
