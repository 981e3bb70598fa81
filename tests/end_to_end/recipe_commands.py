"""Commands in a folder with a mini of its own: as processes from the start, or as copies of one
that has imported everything, which take less time and can be watched."""

import json
import multiprocessing
import os
import sys
import traceback
from pathlib import Path

import warm_processes

ROOT = Path(__file__).resolve().parents[2]
_COPIES = multiprocessing.get_context("forkserver")  # its server starts anew, without threads
_COPIES.set_forkserver_preload(
    [*warm_processes.PACKAGES, "ovd_d2.engine", "ovd_d2.inference.export", "ovd_d2.cli.app"]
)


def run(folder, *words, expect=0):
    """What a command prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DETECTRON2_DATASETS": "datasets"}
    done = warm_processes.run(
        [str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=280,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def weights(folder, out):
    import torch

    return torch.load(folder / out / "model_final.pth", weights_only=True)["model"]


def start_copy(folder, program, *words, watch=()):
    """Starts a command that writes what it prints to ``output.txt``; the process.

    Args:
        folder: the current folder of the command, with ``datasets``.
        program: "train_net.py" or "ovd".
        words: its arguments.
        watch: functions to call first, which may change what they watch.
    """
    words = [str(word) for word in words]
    arguments = (str(folder), program, words, watch)
    process = _COPIES.Process(target=_command, args=arguments, daemon=True)
    process.start()
    return process


def run_copy(folder, program, *words, watch=(), expect=0):
    """What a command prints; see :func:`start_copy`."""
    process = start_copy(folder, program, *words, watch=watch)
    process.join(280)
    output = (folder / "output.txt").read_text()
    assert process.exitcode == expect, output
    return output


def _command(folder, program, words, watch):
    os.chdir(folder)
    sys.stdout = sys.stderr = open("output.txt", "w", buffering=1)  # noqa: SIM115
    code = 0
    try:
        _with_data_sets_of("datasets")
        for function in watch:
            function()
        _main(program, words)
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def _with_data_sets_of(root):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from ovd_d2.data.datasets.builtin import register_all

    DatasetCatalog.clear()
    MetadataCatalog.clear()
    register_all(root)


def _main(program, words):
    if program == "ovd":
        from ovd_d2.cli.app import main

        main(words)
    sys.path.insert(0, str(ROOT))
    import train_net
    from ovd_d2.engine import argument_parser, launch

    launch(train_net.main, argument_parser().parse_args(words))


def note_losses(path):
    """For ``watch``: writes the losses of every iteration to ``path``, as they are."""
    from detectron2.engine import HookBase

    from ovd_d2.engine import OpenVocabTrainer

    class NoteLosses(HookBase):
        def after_step(self):
            step = self.trainer.iter
            latest = self.trainer.storage.latest().items()
            losses = {name: value for name, (value, at) in latest if "loss" in name and at == step}
            _append(path, {"iteration": step, **losses})

    before = OpenVocabTrainer.build_hooks
    OpenVocabTrainer.build_hooks = lambda self: [*before(self), NoteLosses()]


def note_texts(path):
    """For ``watch``: writes to ``path`` which concepts a model's text side reads."""
    from ovd_d2.modeling.concept_text import ConceptText

    before = ConceptText.forward

    def forward(self, texts):
        _append(path, {"training": self.training, "texts": list(texts)})
        return before(self, texts)

    ConceptText.forward = forward


def _append(path, content):
    with open(path, "a") as file:
        file.write(json.dumps(content) + "\n")


def noted(path):
    """What was noted in ``path``: its whole lines."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
