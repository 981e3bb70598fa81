"""``ovd export``: a trained checkpoint becomes a small model folder, or a graph for deployment."""

from pathlib import Path

import typer

from ovd_d2.errors import OVDError

from .register_option import REGISTER

_CHECKPOINT = typer.Argument(
    ...,
    metavar="CHECKPOINT",
    help="The .pth of a training run; for a graph also a model's name or its exported folder.",
)
_CONFIG = typer.Option(
    None,
    help="The yaml it was trained with, such as OUTPUT_DIR/config.yaml; a graph takes the "
    "config.yaml beside the checkpoint by default.",
)
_OUT = typer.Option(..., help="The folder to write; it must not exist.")
_THRESHOLD = typer.Option(
    "",
    help="What `ovd predict` drops detections below: a number, or a data set with boxes on which "
    "to choose it, such as mini_v1_val. In a graph it is fixed; default there: the model's own.",
)
_NOTE = typer.Option(
    [],
    help='KEY=TEXT for the facts, such as "learned_from=photographs (COCO)"; may be repeated.',
)

_OVERRIDES = typer.Argument(
    None, metavar="KEY VALUE", help="Config keys that differ from the yaml."
)
_FORMAT = typer.Option(
    "folder",
    "--format",
    help="folder (for `ovd predict --model`); onnx or torchscript: one file whose class embeddings "
    "are an input, so that other names need no other export.",
)
_CHECK = typer.Option(
    [],
    help="A picture on which the graph must find what the model finds; may be repeated; default: "
    "a random one.",
)


def command(
    checkpoint: str = _CHECKPOINT,
    overrides: list[str] | None = _OVERRIDES,
    config_file: Path | None = _CONFIG,
    out: Path = _OUT,
    score_threshold: str = _THRESHOLD,
    note: list[str] = _NOTE,
    registered: list[str] = REGISTER,
    kind: str = _FORMAT,
    check: list[Path] = _CHECK,
) -> None:
    """Write weights (fp16), config, classes and facts to a folder for `ovd predict --model`; or a
    graph (ONNX, TorchScript) with the embeddings of the classes beside it.

    The classes are those of MODEL.OPEN_VOCAB.VOCABULARY, or else of the training data.
    """
    from ovd_d2 import register

    register()
    if kind != "folder":
        if note:
            raise OVDError("--note is for --format folder: a graph has no such facts.")
        _export_graph(checkpoint, overrides or [], config_file, out, score_threshold, kind, check)
        return
    if config_file is None:
        raise OVDError("--format folder needs the --config-file the checkpoint was trained with.")
    if check:
        raise OVDError("--check is for graphs: add --format onnx or --format torchscript.")
    for entry in note:
        if "=" not in entry:
            raise OVDError(f"--note {entry}: write KEY=TEXT.")
    from ovd_d2.inference.export import export_model

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


def _export_graph(
    model: str,
    overrides: list[str],
    config_file: Path | None,
    out: Path,
    score_threshold: str,
    kind: str,
    check: list[Path],
) -> None:
    from rich.console import Console

    from ovd_d2.inference.graph_export import export_graph

    with Console(stderr=True).status("") as status:
        facts = export_graph(
            model, out, kind, config_file=config_file or "", overrides=overrides,
            score_threshold=score_threshold, check=check, on_step=status.update,
        )  # fmt: skip
    seen, size = facts["check"], sum(file.stat().st_size for file in out.iterdir()) / 1e6
    print(
        f"{out}: {size:.1f} MB; inputs {', '.join(facts['inputs'])}; outputs "
        f"{', '.join(facts['outputs'])}; score threshold {facts['score_threshold']:g}"
    )
    print(
        f"checked on {seen['pictures']} picture{'s' * (seen['pictures'] > 1)}, at two sizes and "
        f"with two vocabularies each: {seen['detections']} detections are the model's (boxes to "
        f"{seen['largest_difference_of_boxes']:.1g} pixels, scores to "
        f"{seen['largest_difference_of_scores']:.1g})"
    )
