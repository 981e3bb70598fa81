"""``ovd export``: a trained checkpoint becomes a small model folder."""

from pathlib import Path

import typer

_CHECKPOINT = typer.Argument(..., metavar="CHECKPOINT", help="The .pth of a training run.")
_CONFIG = typer.Option(..., help="The yaml it was trained with, such as OUTPUT_DIR/config.yaml.")
_OUT = typer.Option(..., help="The folder to write; it must not exist.")


def command(checkpoint: Path = _CHECKPOINT, config_file: Path = _CONFIG, out: Path = _OUT) -> None:
    """Write weights (fp16), config, classes and facts to a folder for `ovd predict --model`."""
    from ovd_d2 import register
    from ovd_d2.inference.export import export_model

    register()
    facts = export_model(checkpoint, config_file, out)
    print(
        f"{out}: {facts['bytes'] / 1e6:.1f} MB, {facts['parameters'] / 1e6:.1f} million "
        f"parameters, {facts['classes']} classes, {facts['iterations'] or '?'} iterations"
    )
