"""``ovd clip``: exports a trained teacher, probes frozen image features."""

from pathlib import Path

import typer

from .register_option import REGISTER

app = typer.Typer(help="Image-text models: export and probe.", no_args_is_help=True)


@app.command()
def export(
    checkpoint: Path = typer.Argument(help="model_final.pth beside its config.yaml."),
    out: Path = typer.Option(help="The .safetensors file to write; facts go beside it (.json)."),
    evaluate: list[str] = typer.Option(
        [], help="Data set of labelled crops for the facts; may be repeated. Default DATASETS.TEST."
    ),
    note: list[str] = typer.Option([], help="KEY=TEXT for the facts; may be repeated."),
    registered: list[str] = REGISTER,
) -> None:
    """Write a CLIP model with a locked text tower as a file for exported:FILE."""
    from ovd_d2 import register
    from ovd_d2.errors import OVDError
    from ovd_d2.jobs.export_teacher import export_checkpoint

    register()
    for entry in note:
        if "=" not in entry:
            raise OVDError(f"--note {entry}: write KEY=TEXT.")
    notes = dict(entry.split("=", 1) for entry in note)
    facts = export_checkpoint(checkpoint, out, datasets=evaluate or None, notes=notes)
    print(f"{out}: {facts['bytes'] / 1e6:.1f} MB, {facts['encoder_id']}")
    for name, metrics in facts["zero_shot_in_percent"].items():
        print(f"  {name}: " + ", ".join(f"{key} {value:.1f}" for key, value in metrics.items()))


@app.command()
def probe(
    model: str = typer.Option("mini-teacher", help="openai-clip:..., open_clip:..., hf:..., ..."),
    train: str = typer.Option("mini_v1_objects_train_all", help="Labelled data set or folder."),
    validation: str = typer.Option("mini_v1_objects_val_seen", help="Another, to choose C."),
    test: str = typer.Option("mini_v1_objects_val", help="Another, to report."),
    folder: Path | None = typer.Option(
        None, help="Instead of the three: a folder with train/, val/ and test/, each with one "
        "sub-folder per class."
    ),
    prompts: list[str] = typer.Option(
        ["photo", "vild63", "imagenet80"], help="Prompt sets of the zero-shot rows."
    ),
    shots: str = typer.Option("1,2,4,8,16", help="Images per class, or an empty string."),
    seeds: int = typer.Option(3, help="Draws per number of shots."),
    linear: bool = typer.Option(True, help="With the linear probe on all training images."),
    out: Path = typer.Option(Path("output/clip_probe.json"), help="The report to write."),
    registered: list[str] = REGISTER,
) -> None:  # fmt: skip
    """Zero-shot, linear-probe and few-shot accuracy of a model's frozen image features."""
    from ovd_d2 import register
    from ovd_d2.encoders import build_image_text_model
    from ovd_d2.errors import OVDError
    from ovd_d2.evaluation.probe_report import probe_report, report_rows
    from ovd_d2.files.atomic import check_output, write_json

    register()
    if folder is not None:
        train, validation, test = (str(folder / name) for name in ("train", "val", "test"))
    try:
        counts = [int(word) for word in shots.split(",") if word.strip()]
    except ValueError as error:
        raise OVDError(f"--shots {shots}: write numbers with commas, such as 1,2,4.") from error
    if any(count < 1 for count in counts) or seeds < 1:
        raise OVDError("--shots and --seeds must be at least 1.")
    check_output("--out", out)
    report = probe_report(
        build_image_text_model(model), train=train, validation=validation, test=test,
        prompts=prompts, shots=counts, seeds=range(seeds), probe=linear,
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(str(out), report)
    width = max(len(what) for what, _ in report_rows(report))
    for what, value in report_rows(report):
        print(f"{what:{width}}  {value}")
    print(f"wrote {out}")
