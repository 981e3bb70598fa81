"""Killed and resumed, two processes against one, and the command line as a process."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import warm_processes
from tiny_detector import (
    ROOT,
    assert_same_weights,
    register,
    run_trainer,
    tiny_config,
    weights,
    write_dataset,
)

HERE = Path(__file__).parent


def forked(function, *args):
    """Runs ``function`` in a copy of this process; returns its id. It ends without cleaning up."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        torch.set_num_threads(1)
        function(*args)
        code = 0
    finally:
        os._exit(code)


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments_the_weights_are_the_same(tmp_path, workers):
    write_dataset(tmp_path / "data")
    register(tmp_path / "data")
    opts = ("DATALOADER.NUM_WORKERS", workers, "SOLVER.MAX_ITER", 40, "SOLVER.STEPS", "(30,)",
            "SOLVER.CHECKPOINT_PERIOD", 3, "SOLVER.ACCUMULATE", 2,
            "TEST.EVAL_PERIOD", 7)  # fmt: skip
    assert wait(forked(run_trainer, tiny_config(tmp_path / "whole", *opts))) == 0
    rng = random.Random(workers)
    for _ in range(4):  # each run gets at least one checkpoint further, then any moment may come
        before = set((tmp_path / "killed").glob("model_*.pth"))
        child = forked(run_trainer, tiny_config(tmp_path / "killed", *opts), True)
        while not set((tmp_path / "killed").glob("model_*.pth")) - before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        assert wait(child) == -signal.SIGKILL
    assert not (tmp_path / "killed/model_final.pth").exists()
    assert wait(forked(run_trainer, tiny_config(tmp_path / "killed", *opts), True)) == 0
    assert_same_weights(
        weights(tmp_path / "whole/model_final.pth"), weights(tmp_path / "killed/model_final.pth")
    )
    for line in (tmp_path / "killed/metrics.json").read_text().splitlines():
        json.loads(line)


# Every proposal is used and every image has equally many, so that the mean of the processes'
# losses is the loss of the whole batch.
COMPARABLE = (
    "MODEL.BACKBONE.NAME", "build_tiny_backbone_without_dropout",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10000, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10000,
    "MODEL.RPN.NMS_THRESH", 1.0, "INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.IMS_PER_BATCH", 4,
    "DATASETS.TEST", "()",
)  # fmt: skip


def train_and_note_losses(cfg, path):
    trainer = run_trainer(cfg)
    history = {name: [v for v, _ in h.values()] for name, h in trainer.storage.histories().items()
               if "loss" in name}  # fmt: skip
    state = {k: v.tolist() for k, v in trainer.model.state_dict().items()}
    Path(path).write_text(json.dumps({"losses": history, "weights": state}))


def train_as_rank(rank, port, cfg, path):
    from ovd_d2.engine import launch

    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    launch(lambda _: train_and_note_losses(cfg, f"{path}.{rank}"), None)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_equal_one(tmp_path, accumulate):
    write_dataset(tmp_path / "data", square=True)
    register(tmp_path / "data")
    opts = (*COMPARABLE, "SOLVER.ACCUMULATE", accumulate)
    path, port = tmp_path / "two.json", free_port()
    cfg = tiny_config(tmp_path / "two", *opts)
    children = [forked(train_as_rank, rank, port, cfg, path) for rank in range(2)]
    assert [wait(child) for child in children] == [0, 0]
    train_and_note_losses(tiny_config(tmp_path / "one", *opts), tmp_path / "one.json")
    one = json.loads((tmp_path / "one.json").read_text())
    ranks = [json.loads(Path(f"{path}.{rank}").read_text()) for rank in range(2)]
    strip = {k.removeprefix("module."): v for k, v in ranks[0]["weights"].items()}
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert ranks[0]["losses"].keys() == one["losses"].keys()
    assert {"loss_cls", "loss_rpn_loc", "total_loss"} <= one["losses"].keys()
    for name, expected in one["losses"].items():
        assert len(expected) == 6
        assert ranks[0]["losses"][name] == pytest.approx(expected, abs=1e-4), name
    for name, expected in one["weights"].items():
        torch.testing.assert_close(
            torch.tensor(strip[name]), torch.tensor(expected), atol=1e-4, rtol=1e-4
        )
    assert (tmp_path / "two/model_final.pth").exists()


def train_with_poison(cfg, path):
    from ovd_d2.engine import NonFiniteLossError, OpenVocabTrainer

    class Poisoned(OpenVocabTrainer):
        def run_step(self):
            if self.iter == 2 and os.environ["RANK"] == "1":
                predictor = self.model.module.roi_heads.box_predictor
                predictor.loss_weight = {"loss_cls": float("nan")}
            super().run_step()

    try:
        run_trainer(cfg, trainer_class=Poisoned)
    except NonFiniteLossError as error:
        Path(path).write_text(str(error))


def test_all_processes_stop_when_one_finds_nan(tmp_path):
    write_dataset(tmp_path / "data", square=True)
    register(tmp_path / "data")
    cfg = tiny_config(tmp_path / "out", *COMPARABLE)
    port = free_port()

    def rank_main(rank):
        from ovd_d2.engine import launch

        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
        launch(lambda _: train_with_poison(cfg, tmp_path / f"error.{rank}"), None)

    children = [forked(rank_main, rank) for rank in range(2)]
    assert [wait(child) for child in children] == [0, 0]
    messages = [(tmp_path / f"error.{rank}").read_text() for rank in range(2)]
    assert messages[0] == messages[1]
    assert messages[0].startswith("loss_cls = nan at iteration 2 on the images /")
    assert messages[0].count(".png") == 2


def run_command(*words, run=warm_processes.run, **kwargs):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, env=environment,
        timeout=200, **kwargs,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_refuses_bad_input(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("SOLVER: {QQQQQQQQ: 1}\n")
    ran = run_command(ROOT / "train_net.py", "--config-file", config, cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.strip().splitlines()[-1] == (
        f"error: {config}: there is no config key SOLVER.QQQQQQQQ."
    )
    assert "Traceback" not in ran.stderr + ran.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--eval-only"], "MODEL.WEIGHTS is empty"),
        (["MODEL.RPN.IN_FEATURES", "['p9']"], "MODEL.RPN.IN_FEATURES names 'p9'"),
        (["OUTPUT_DIR", "a_file"], "a_file is no folder"),
    ],
)
def test_the_command_ends_before_anything_runs(tmp_path, words, sentence):
    write_dataset(tmp_path / "data", count=2)
    (tmp_path / "a_file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    words = words if "OUTPUT_DIR" in words else [*words, "OUTPUT_DIR", tmp_path / "out"]
    ran = run_command(HERE / "tiny_detector.py", tmp_path / "data", *words, cwd=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert sentence in ran.stderr.strip().splitlines()[-1]
    assert "Traceback" not in ran.stderr + ran.stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_the_command_killed_and_resumed(tmp_path):
    """The command line, once in a fresh interpreter; at the end two processes by torchrun."""
    write_dataset(tmp_path / "data")
    register(tmp_path / "data")
    script = [HERE / "tiny_detector.py", tmp_path / "data"]
    opts = ["SOLVER.MAX_ITER", 30, "SOLVER.STEPS", "(20,)"]
    assert wait(forked(run_trainer, tiny_config(tmp_path / "whole", *opts))) == 0
    process = warm_processes.start(
        [sys.executable, *map(str, [*script, *opts, "OUTPUT_DIR", tmp_path / "killed"])],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.time() + 120
    while not list((tmp_path / "killed").glob("model_*.pth")) and time.time() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed/model_final.pth").exists()
    resume = [*script, "--resume", *opts, "OUTPUT_DIR", tmp_path / "killed"]
    ran = run_command(*resume, run=subprocess.run)
    assert ran.returncode == 0, ran.stderr
    assert_same_weights(
        weights(tmp_path / "whole/model_final.pth"), weights(tmp_path / "killed/model_final.pth")
    )
    two = run_command(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, *script,
        "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", "()", "OUTPUT_DIR", tmp_path / "two",
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert json.loads((tmp_path / "two/results.json").read_text())["iteration"] == 3
