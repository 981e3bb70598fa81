"""``ovd export``: a trained checkpoint becomes a small model folder."""

from pathlib import Path

import typer

from .register_option import REGISTER

_CHECKPOINT = typer.Argument(..., metavar="CHECKPOINT", help="The .pth of a training run.")
_CONFIG = typer.Option(..., help="The yaml it was trained with, such as OUTPUT_DIR/config.yaml.")
_OUT = typer.Option(..., help="The folder to write; it must not exist.")

_OVERRIDES = typer.Argument(
    None, metavar="[KEY VALUE]...", help="Config keys that differ from the yaml."
)


def command(
    checkpoint: Path = _CHECKPOINT,
    overrides: list[str] | None = _OVERRIDES,
    config_file: Path = _CONFIG,
    out: Path = _OUT,
    registered: list[str] = REGISTER,
) -> None:
    """Write weights (fp16), config, classes and facts to a folder for `ovd predict --model`.

    The classes are those of MODEL.OPEN_VOCAB.VOCABULARY, or else of the training data.
    """
    from ovd_d2 import register
    from ovd_d2.inference.export import export_model

    register()
    facts = export_model(checkpoint, config_file, out, overrides or ())
    print(
        f"{out}: {facts['bytes'] / 1e6:.1f} MB, {facts['parameters'] / 1e6:.1f} million "
        f"parameters, {facts['classes']} classes, {facts['iterations'] or '?'} iterations"
    )
