"""``ovd export``: a trained checkpoint becomes a small model folder."""

from pathlib import Path

import typer

from ovd_d2.errors import OVDError

from .register_option import REGISTER

_CHECKPOINT = typer.Argument(..., metavar="CHECKPOINT", help="The .pth of a training run.")
_CONFIG = typer.Option(..., help="The yaml it was trained with, such as OUTPUT_DIR/config.yaml.")
_OUT = typer.Option(..., help="The folder to write; it must not exist.")
_THRESHOLD = typer.Option(
    "",
    help="What `ovd predict` drops detections below: a number, or a data set with boxes on which "
    "to choose it, such as mini_v1_val.",
)
_NOTE = typer.Option(
    [],
    help='KEY=TEXT for the facts, such as "learned_from=photographs (COCO)"; may be repeated.',
)

_OVERRIDES = typer.Argument(
    None, metavar="[KEY VALUE]...", help="Config keys that differ from the yaml."
)


def command(
    checkpoint: Path = _CHECKPOINT,
    overrides: list[str] | None = _OVERRIDES,
    config_file: Path = _CONFIG,
    out: Path = _OUT,
    score_threshold: str = _THRESHOLD,
    note: list[str] = _NOTE,
    registered: list[str] = REGISTER,
) -> None:
    """Write weights (fp16), config, classes and facts to a folder for `ovd predict --model`.

    The classes are those of MODEL.OPEN_VOCAB.VOCABULARY, or else of the training data.
    """
    from ovd_d2 import register
    from ovd_d2.inference.export import export_model

    register()
    for entry in note:
        if "=" not in entry:
            raise OVDError(f"--note {entry}: write KEY=TEXT.")
    notes = dict(entry.split("=", 1) for entry in note)
    facts = export_model(
        checkpoint, config_file, out, overrides or (), score_threshold=score_threshold, notes=notes
    )
    print(
        f"{out}: {facts['bytes'] / 1e6:.1f} MB, {facts['parameters'] / 1e6:.1f} million "
        f"parameters, {facts['classes']} classes, {facts['iterations'] or '?'} iterations"
    )
    if "score_threshold" in facts:
        print(f"score threshold {facts['score_threshold']:g}")
