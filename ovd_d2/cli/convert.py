"""``ovd convert``: checkpoints of other projects, and detections for other tools."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ovd_d2.jobs.convert_checkpoint import Conversion

from .register_option import REGISTER

app = typer.Typer(
    help="Checkpoints of other projects to ours, and back; detections for other tools.",
    no_args_is_help=True,
)
_SOURCE = typer.Argument(..., metavar="FILE", help=".pth, .safetensors, or .pkl with --trust.")
_OUT = typer.Option(
    None, help=".pth or .safetensors to write. Default: FILE with _converted.pth at the end."
)
_EMBEDDINGS = typer.Option(
    None,
    help="The class embeddings, a .safetensors file for MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS: written; "
    "with --reverse read.",
)
_VOCABULARY = typer.Option(
    "", help="Class names of the embeddings, for example dataset:lvis_v1_train_base."
)
_ENCODER = typer.Option("openai-clip:ViT-B/32", help="What made the embeddings; it is not loaded.")
_DETECTIONS = typer.Argument(
    ...,
    metavar="FILE",
    help="predictions.json of `ovd predict`, a label file of `ovd pseudo-label` (labels:FILE too), "
    "COCO's or LVIS's annotations, or a list of results.",
)
_TO = typer.Option(..., "--to", help="coco, yolo, voc, cvat or label-studio.")
_FOLDER = typer.Option(..., help="Folder to write; what this command wrote there is replaced.")
_RESULTS_OF = typer.Option(None, help="Of a list of results: the json they were made for.")
_IMAGE_ROOT = typer.Option(
    None, help="Folder that file names count from; default: what FILE says, else the current one."
)
_SCORES = typer.Option(False, "--scores", help="yolo: the score ends each line (not for training).")
_COPY = typer.Option(False, "--copy-images", help="Put the images beside the files.")
_IMAGE_URL = typer.Option(
    "/data/local-files/?d=", help="label-studio: what stands before the path of an image."
)
_TRUST = typer.Option(False, "--trust", help="Open a .pkl, which can run any code.")


@app.command("object-centric-ovd")
def object_centric_ovd(
    source: Path = _SOURCE,
    out: Path | None = _OUT,
    reverse: bool = typer.Option(False, "--reverse", help="FILE is ours, write theirs."),
    embeddings: Path | None = _EMBEDDINGS,
    vocabulary: str = _VOCABULARY,
    encoder: str = _ENCODER,
    trust: bool = _TRUST,
    registered: list[str] = REGISTER,
) -> None:
    """A released detector of object-centric-ovd, for configs/rkd/*.yaml; or ours for their code."""
    from ovd_d2.jobs.convert_checkpoint import (
        convert_object_centric_ovd,
        convert_to_object_centric_ovd,
    )

    out = _prepare(source, out, trust)
    if reverse:
        done = convert_to_object_centric_ovd(source, out, embeddings, vocabulary)
    else:
        done = convert_object_centric_ovd(source, out, embeddings, vocabulary, encoder)
    _report(out, done)


@app.command()
def detic(
    source: Path = _SOURCE,
    out: Path | None = _OUT,
    embeddings: Path | None = _EMBEDDINGS,
    vocabulary: str = _VOCABULARY,
    encoder: str = _ENCODER,
    trust: bool = _TRUST,
    registered: list[str] = REGISTER,
) -> None:
    """A Detic detector: OVD-COCO's C4 and ViLD_200e whole, of CenterNet2 the cascade; says which
    keys of the config it wants and what does not fit."""
    from ovd_d2.jobs.convert_checkpoint import convert_detic

    out = _prepare(source, out, trust)
    _report(out, convert_detic(source, out, embeddings, vocabulary, encoder))


@app.command()
def glip(
    source: Path = _SOURCE,
    out: Path | None = _OUT,
    reverse: bool = typer.Option(False, "--reverse", help="FILE is ours, write theirs."),
    trust: bool = _TRUST,
) -> None:
    """A released GLIP-T(A), GLIP-T or GLIP-L, for configs/glip/*.yaml; or ours for their code."""
    from ovd_d2.jobs.convert_checkpoint import convert_glip, convert_to_glip

    out = _prepare(source, out, trust)
    _report(out, (convert_to_glip if reverse else convert_glip)(source, out))


@app.command()
def clip(
    source: Path = typer.Argument(..., metavar="FILE", help=".pt, .pth or .safetensors."),
    out: Path | None = _OUT,
    reverse: bool = typer.Option(False, "--reverse", help="FILE is ours, write theirs."),
) -> None:
    """OpenAI's CLIP for configs/clip/*.yaml, which read it as it is, too; or ours for the package
    clip and as openai-clip:FILE."""
    from ovd_d2.jobs.convert_clip import convert_clip, convert_to_clip

    out = _prepare(source, out, trust=False)
    _report(out, (convert_to_clip if reverse else convert_clip)(source, out))


@app.command()
def lseg(
    source: Path = typer.Argument(..., metavar="FILE", help=".ckpt, .pth or .safetensors."),
    out: Path | None = _OUT,
    reverse: bool = typer.Option(False, "--reverse", help="FILE is ours, write theirs."),
) -> None:
    """A released LSeg, the demo or a few-shot model, for configs/lseg/*.yaml; or ours for their
    code."""
    from ovd_d2.jobs.convert_checkpoint import convert_lseg, convert_to_lseg

    out = _prepare(source, out, trust=False)
    _report(out, (convert_to_lseg if reverse else convert_lseg)(source, out))


@app.command()
def groupvit(
    source: Path = typer.Argument(
        ...,
        metavar="FILE_OR_FOLDER",
        help="NVlabs' or our .pth or .safetensors, or the folder of transformers' model.",
    ),
    out: Path | None = _OUT,
    to: str = typer.Option("ours", "--to", help="Names to write: ours, nvlabs or transformers."),
) -> None:
    """A GroupViT of NVlabs or transformers, for configs/groupvit/*.yaml; or ours for their code.
    NVlabs' released weights are for non-commercial use alone."""
    from ovd_d2.jobs.convert_groupvit import convert_groupvit

    out = _prepare(source, out, trust=False)
    _report(out, convert_groupvit(source, out, to))


@app.command()
def mavl(
    source: Path = typer.Argument(..., metavar="FILE", help=".pth or .safetensors."),
    out: Path | None = typer.Option(
        None,
        help=".pth or .safetensors to write; its config is written beside it, with .yaml at the "
        "end. Default: FILE with _converted.safetensors at the end.",
    ),
    ema: bool = typer.Option(
        False, "--ema", help="The averaged weights (model_ema), which training saves with --ema."
    ),
) -> None:
    """A released MAVL (MDef-DETR), with or without language, for configs/mavl/*.yaml; nothing in
    the file is run."""
    from ovd_d2.jobs.convert_mavl import convert_mavl

    out = out or source.with_name(f"{source.stem}_converted.safetensors")
    out = _prepare(source, out, trust=False)
    _report(out, convert_mavl(source, out, ema=ema))


@app.command()
def detections(
    source: str = _DETECTIONS,
    to: str = _TO,
    out: Path = _FOLDER,
    annotations: Path | None = _RESULTS_OF,
    image_root: Path | None = _IMAGE_ROOT,
    scores: bool = _SCORES,
    copy_images: bool = _COPY,
    image_url: str = _IMAGE_URL,
) -> None:
    """Detections or pseudo-labels for training code and label tools: COCO, YOLO, Pascal VOC, CVAT,
    Label Studio."""
    from tqdm import tqdm

    from ovd_d2.inference.formats import (
        FormatOptions,
        check_formats,
        read_detections,
        write_detections,
    )

    check_formats("--to", [to])
    found = read_detections(source, annotations=annotations, image_root=image_root)
    with tqdm(total=len(found.images), unit="image", delay=1, disable=None) as bar:
        options = FormatOptions(scores, image_url, copy_images, bar.update)
        count = write_detections(found, to, out, options)
    objects = sum(len(image.objects) for image in found.images)
    print(f"{out}: {objects} objects on {len(found.images)} images; files: {count}")
    for reason, number in found.left_out.items():
        print(f"  {number} objects are left out: they {reason}")


def _prepare(source: Path, out: Path | None, trust: bool) -> Path:
    import ovd_d2
    from ovd_d2.checkpoint import TRUST_VARIABLE

    ovd_d2.register()
    if trust:
        os.environ[TRUST_VARIABLE] = "1"
    return out or source.with_name(f"{source.stem}_converted.pth")


def _report(out: Path, done: "Conversion") -> None:
    print(f"{out}: {done.entries} tensors")
    for fact in done.facts:
        print(f"  {fact}")
