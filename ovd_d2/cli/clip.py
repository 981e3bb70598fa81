"""``ovd clip``: exports a trained teacher, probes frozen image features."""

from pathlib import Path

import typer

app = typer.Typer(help="Image-text models: export and probe.", no_args_is_help=True)


@app.command()
def export(
    checkpoint: Path = typer.Argument(help="model_final.pth beside its config.yaml."),
    out: Path = typer.Option(help="The .safetensors file to write; facts go beside it (.json)."),
    evaluate: list[str] = typer.Option(
        [], help="Data set of labelled crops for the facts; may be repeated. Default DATASETS.TEST."
    ),
    note: list[str] = typer.Option([], help="KEY=TEXT for the facts; may be repeated."),
) -> None:
    """Write a CLIP model with a locked text tower as a file for mini-teacher:FILE."""
    from ovd_d2 import register
    from ovd_d2.engine.teacher_export import export_checkpoint
    from ovd_d2.errors import OVDError

    register()
    for entry in note:
        if "=" not in entry:
            raise OVDError(f"--note {entry}: write KEY=TEXT.")
    notes = dict(entry.split("=", 1) for entry in note)
    facts = export_checkpoint(checkpoint, out, datasets=evaluate or None, notes=notes)
    print(f"{out}: {facts['bytes'] / 1e6:.1f} MB, {facts['encoder_id']}")
    for name, metrics in facts["top1_in_percent"].items():
        print(f"  {name}: " + ", ".join(f"{key} {value:.1f}" for key, value in metrics.items()))
