"""Configs and arguments: what is wrong is said in one sentence, before anything is written."""

import logging
import sys

import pytest
import torch
from tiny_detector import OPTIONS, ROOT, TRAIN, register, write_dataset

from ovd_d2.checkpoint import TRUST_VARIABLE
from ovd_d2.engine import argument_parser, error_sentence, launch, load_config, setup
from ovd_d2.errors import OVDError

sys.path.insert(0, str(ROOT))


def write(folder, text, name="config.yaml"):
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    "text, named",
    [
        (
            "SOLVER:\n  BASE_LRR: 0.1\n",
            "no config key SOLVER.BASE_LRR (did you mean SOLVER.BASE_LR",
        ),
        ("NONSENSE: 1\n", "no config key NONSENSE"),
        ("SOLVER: [1, 2\n", "not readable yaml"),
        ("\x00\x01", "not readable yaml"),
        ("", "not a mapping"),
        ("just words\n", "config.yaml"),
        ("- a\n- b\n", "not a mapping"),
        ("SOLVER:\n  BASE_LR: hello\n", "config.yaml"),
        ("OUTPUT_DIR: !!python/object/apply:os.mkdir [MARKER]\n", "yaml tag that could run code"),
        ("_BASE_: evil_base.yaml\n", "yaml tag that could run code"),
        ("_BASE_: missing.yaml\n", "missing.yaml"),
        ("_BASE_: config.yaml\n", "circle"),
    ],
)
def test_bad_config_files(tmp_path, text, named):
    marker = tmp_path / "marker"
    write(tmp_path, f"OUTPUT_DIR: !!python/object/apply:os.mkdir [{marker}]\n", "evil_base.yaml")
    path = write(tmp_path, text.replace("MARKER", str(marker)))
    with pytest.raises(OVDError) as caught:
        load_config(path)
    message = str(caught.value)
    assert named in message
    assert "config.yaml" in message
    assert "\n" not in message
    assert not marker.exists()


def test_missing_config_file():
    with pytest.raises(OVDError, match=r"nowhere\.yaml does not exist"):
        load_config("nowhere.yaml")


@pytest.mark.parametrize(
    "opts, named",
    [
        (["SOLVER.MAX_ITERS", "3"], "SOLVER.MAX_ITERS (did you mean SOLVER.MAX_ITER"),
        (["SOLVER.MAX_ITER"], "pairs of KEY and value"),
        (["SOLVER.MAX_ITER", "three"], "Type mismatch"),
        (["_BASE_", "x"], "_BASE_"),
    ],
)
def test_bad_options(opts, named):
    with pytest.raises(OVDError) as caught:
        load_config("", opts)
    assert named in str(caught.value)


def test_base_files_merge(tmp_path):
    write(tmp_path, "SOLVER: {MAX_ITER: 11, ACCUMULATE: 2}\n", "base.yaml")
    cfg = load_config(write(tmp_path, "_BASE_: base.yaml\nSOLVER: {MAX_ITER: 12}\n"), ["SEED", "4"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.ACCUMULATE, cfg.SEED) == (12, 2, 4)


@pytest.fixture
def registered(tmp_path):
    write_dataset(tmp_path / "data", count=2)
    register(tmp_path / "data")
    return tmp_path


def parse(*words):
    return argument_parser().parse_args([*words])


def test_setup(registered, monkeypatch):
    monkeypatch.setenv(TRUST_VARIABLE, "0")
    out = registered / "out"
    cfg = setup(parse("--trust", *OPTIONS, "OUTPUT_DIR", str(out), "MODEL.WEIGHTS", "a.pkl",
                      "MODEL.DEVICE", "cuda"))  # fmt: skip
    assert cfg.is_frozen()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert device == cfg.MODEL.DEVICE
    assert not out.exists()


@pytest.mark.parametrize(
    "opts, named",
    [
        (("SOLVER.OPTIMIZER", "ADAM"), "SOLVER.OPTIMIZER is 'ADAM'"),
        (("SOLVER.ACCUMULATE", "0"), "SOLVER.ACCUMULATE is 0"),
        (("SOLVER.CHECKPOINT_KEEP", "-1"), "SOLVER.CHECKPOINT_KEEP is -1"),
        (("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "fp16"), "SOLVER.AMP.DTYPE is 'fp16'"),
        (("DATALOADER.MAX_CORRUPT_FRACTION", "2.0"), "MAX_CORRUPT_FRACTION"),
        (("DATASETS.TEST", "('tiny_tset',)"), "DATASETS.TEST names the dataset 'tiny_tset'"),
        (("MODEL.WEIGHTS", "detectron2://x/R-50.pkl"), "--trust"),
        (("MODEL.LOAD_PROPOSALS", "True", "DATASETS.PROPOSAL_FILES_TRAIN", "('p.pkl',)"), "p.pkl"),
    ],
)
def test_bad_values_are_found_first(registered, opts, named):
    with pytest.raises(OVDError) as caught:
        setup(parse(*OPTIONS, "OUTPUT_DIR", str(registered / "out"), *opts))
    assert named in str(caught.value)
    assert not (registered / "out").exists()


@pytest.mark.parametrize("device", ["nope", "meta", "xla", "mps", "cuda:99", ""])
def test_devices_that_cannot_be_used_are_found_first(registered, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(OVDError, match=f"MODEL.DEVICE '{device}'"):
        setup(parse(*OPTIONS, "MODEL.DEVICE", repr(device)))


def test_apple_s_gpu_is_used_where_torch_has_it(registered, monkeypatch):
    from ovd_d2.layers.device import usable_device

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert setup(parse(*OPTIONS, "MODEL.DEVICE", "mps")).MODEL.DEVICE == "mps"
    assert usable_device("mps", "The device") == torch.device("mps")


def test_sizes_of_0_are_detectron2_s_and_said(registered, capsys):
    setup(parse(*OPTIONS))
    assert "keep their sizes" not in capsys.readouterr().out
    setup(parse(*OPTIONS, "INPUT.MIN_SIZE_TEST", "0"))
    assert "keep their sizes" in capsys.readouterr().out


@pytest.fixture
def other_weights(registered):
    """Weights of the tiny detector with a wider box head, and of something else."""
    from tiny_detector import tiny_config

    from ovd_d2.engine import OpenVocabTrainer

    wide = OpenVocabTrainer.build_model(tiny_config(registered, "MODEL.ROI_BOX_HEAD.FC_DIM", 17))
    torch.save({"model": wide.state_dict()}, registered / "wide.pth")
    torch.save({"model": {}}, registered / "nothing.pth")
    backbone = {k: v for k, v in wide.state_dict().items() if k.startswith("backbone")}
    torch.save(backbone, registered / "backbone.pth")
    return registered


@pytest.mark.parametrize(
    "weights, sentence",
    [
        ("", "MODEL.WEIGHTS is empty, so --eval-only would score an untrained model"),
        ("wide.pth", "fc1.weight has shape (17, 144), the model's is (16, 144)"),
        ("nothing.pth", "holds no weights of a model"),
        ("backbone.pth", "lacks 12 of the model's 22 weights, such as proposal_generator"),
        ("gone.pth", "gone.pth"),
    ],
)
def test_no_evaluation_of_what_was_not_trained(other_weights, capsys, weights, sentence):
    import train_net

    path = str(other_weights / weights) if weights else "''"
    options = [*OPTIONS, "OUTPUT_DIR", str(other_weights / "out"), "MODEL.WEIGHTS", path]
    with pytest.raises(SystemExit) as ended:
        train_net.main(parse("--eval-only", *options))
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (other_weights / "out").exists()


@pytest.mark.parametrize("weights", ["wide.pth", "nothing.pth"])
def test_no_training_from_another_network(other_weights, capsys, weights):
    import train_net

    options = [*OPTIONS, "OUTPUT_DIR", str(other_weights / "out")]
    with pytest.raises(SystemExit) as ended:
        train_net.main(parse(*options, "MODEL.WEIGHTS", str(other_weights / weights)))
    assert ended.value.code == 2 and weights in capsys.readouterr().err
    assert not (other_weights / "out").exists()


def test_training_starts_from_a_backbone(other_weights):
    import train_net

    options = [*OPTIONS, "OUTPUT_DIR", str(other_weights / "out"), "SOLVER.MAX_ITER", "1",
               "SOLVER.STEPS", "()", "DATASETS.TEST", "()"]  # fmt: skip
    train_net.main(parse(*options, "MODEL.WEIGHTS", str(other_weights / "backbone.pth")))
    log = (other_weights / "out/log.txt").read_text()
    assert "10 of 22 weights of the model found in" in log
    assert "(backbone 10 of 10, proposal_generator 0 of 6," in log


@pytest.mark.parametrize("gone", ["annotations.json", "images"])
def test_missing_dataset_files_are_found_first(registered, gone):
    (registered / "data" / gone).rename(registered / "elsewhere")
    with pytest.raises(OVDError, match=gone) as caught:
        setup(parse(*OPTIONS))
    assert TRAIN in str(caught.value)
    assert "datasets/README.md" in str(caught.value)


def test_main_ends_with_a_sentence_and_code_2(registered, capsys):
    import train_net

    with pytest.raises(SystemExit) as ended:
        train_net.main(parse(*OPTIONS, "SOLVER.ACCUMULATE", "0"))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error == "error: SOLVER.ACCUMULATE is 0; it must be at least 1.\n"


def test_the_log_file_has_the_first_lines(registered, capsys):
    import train_net

    out = registered / "out"
    opts = ("OUTPUT_DIR", str(out), "SOLVER.MAX_ITER", "6")
    results = train_net.main(parse(*OPTIONS, *opts))
    log = (out / "log.txt").read_text()
    assert "Model:\nGeneralizedRCNN" in log
    assert "Command line: " in log
    assert log.index("Model:") < log.index("Config written")
    assert "eta" in log
    assert str(out) == load_config(str(out / "config.yaml")).OUTPUT_DIR
    evaluated = train_net.main(
        parse("--eval-only", *OPTIONS, *opts, "MODEL.WEIGHTS", str(out / "model_final.pth"))
    )
    assert evaluated["bbox"]["AP"] == pytest.approx(results["bbox"]["AP"], nan_ok=True)
    for name in ("fvcore", "detectron2", "ovd_d2"):  # leave no handlers of this test behind
        logging.getLogger(name).handlers.clear()


def test_more_gpus_than_there_are(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert launch(lambda args: "ran", parse("--num-gpus", "1")) == "ran"
    assert launch(lambda args: "ran", parse("--num-gpus", "0")) == "ran"
    with pytest.raises(OVDError, match="torchrun --nproc-per-node 2"):
        launch(lambda args: "ran", parse("--num-gpus", "2"))


def test_error_sentence_of_a_worker():
    text = (
        "Caught UnreadableImageError in DataLoader worker process 0.\nOriginal Traceback (most "
        "recent call last):\n  File x\novd_d2.data.dataset_mapper.UnreadableImageError: Cannot "
        "use the image a.jpg: there is no such file."
    )
    assert error_sentence(OVDError(text)) == "Cannot use the image a.jpg: there is no such file."
    assert error_sentence(OVDError("plain: words")) == "plain: words"
