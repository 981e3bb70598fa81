"""``ovd regions``: stores of precomputed region embeddings."""

import os
import sys
from pathlib import Path

import typer

from .register_option import REGISTER

app = typer.Typer(
    help="Region stores: what a teacher makes of regions, precomputed.", no_args_is_help=True
)
_STORE = typer.Argument(..., metavar="STORE", help="Folder of the region store.")
_SOURCE = typer.Argument(..., metavar="DIR", help="Folder with the published files.")
_ANNOTATIONS = typer.Option(..., help="COCO or LVIS json that tells the id of each image name.")
_OUT = typer.Option(..., help="Folder of the region store; an interrupted import goes on.")
_DATASET = typer.Option(..., help="Registered data set, for example mini_v1_train_base.")
_PROPOSALS = typer.Option(
    ...,
    help="Where boxes come from: gt; json:FILE (COCO's or LVIS's results); rpn:CHECKPOINT (of "
    "train_net.py, its config.yaml beside it); model:CHECKPOINT or model:CHECKPOINT,config=FILE (a "
    "MAVL, asked for objects); hf:MODEL (a detector of transformers).",
)
_QUERIES = typer.Option(
    "", help="What to ask model: for, between commas; default: RKD's four wordings of all objects."
)
_ENCODER = typer.Option(
    ..., help="Image-text model: openai-clip:NAME_OR_FILE, hf:MODEL, open_clip:MODEL:WEIGHTS, ..."
)
_STORE_OUT = typer.Option(..., help="Folder of the region store; an interrupted build goes on.")


@app.command()
def build(
    dataset: str = _DATASET,
    proposals: str = _PROPOSALS,
    encoder: str = _ENCODER,
    out: Path = _STORE_OUT,
    topk: int = typer.Option(300, help="Boxes per image at most, best first."),
    crops: str = typer.Option("1x+1.5x", help="1x+1.5x (ViLD) or 1x (RKD)."),
    batch: int = typer.Option(
        0, min=0, help="Crops at once through the image tower; 0: 32 on a CPU, 256 on a GPU."
    ),
    device: str = typer.Option("auto", help="cpu, cuda, ...; auto: the GPU if there is one."),
    registered: list[str] = REGISTER,
    save_every: float = typer.Option(120.0, min=0, help="Seconds of work that a kill may cost."),
    queries: str = _QUERIES,
) -> None:
    """Embed the regions of a data set's images. Run it again after an interruption.

    Several processes share the images: torchrun --nproc-per-node N -m ovd_d2.cli.app regions build
    ... Their number may change from run to run.
    """
    import ovd_d2

    ovd_d2.register()
    from detectron2.utils.logger import setup_logger

    from ovd_d2.jobs.build_region_store import BuildSettings, build_region_store

    words = tuple(query.strip() for query in queries.split(",") if query.strip())
    settings = BuildSettings(
        dataset, proposals, encoder, out, topk, crops, batch, device, save_every, words
    )
    is_main = os.environ.get("RANK", "0") == "0"
    setup_logger(name="ovd_d2", distributed_rank=int(os.environ.get("RANK", "0")))
    with ImageBar(is_main) as bar:
        report = build_region_store(settings, bar.tell)
    if not is_main:
        return
    speed = report.images / report.seconds if report.images else 0.0
    print(
        f"{out}: {report.images} images and {report.regions} regions in {report.seconds:.1f} s "
        f"({speed:.2f} images/s, {speed and report.regions / report.seconds:.1f} regions/s)"
        + (" by the first of the processes" if "RANK" in os.environ else "")
    )
    if report.unreadable:
        print(f"{len(report.unreadable)} images could not be read and are missing")


class ImageBar:
    """Images done with ETA and images/s; a line every half minute where stderr is a file."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._bar = None

    def __enter__(self) -> "ImageBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def tell(self, done: int, images: int) -> None:
        """``done`` of ``images``; the first call gives those of earlier runs."""
        if not self._shown:
            return
        if self._bar is None:
            from tqdm import tqdm

            interval = 0.1 if sys.stderr.isatty() else 30.0
            self._bar = tqdm(
                total=images, initial=done, unit="image", delay=5, mininterval=interval
            )
        self._bar.update(done - self._bar.n)


@app.command()
def inspect(path: Path = _STORE) -> None:
    """Print what a store was made from and what it holds."""
    from ovd_d2.region_store import RegionStore, is_finished, read_all_manifests
    from ovd_d2.region_store.reader import check_finished

    manifest = read_all_manifests(path) if path.is_dir() else None
    if manifest is None:
        check_finished(path)
    facts = manifest.facts
    lines = {
        "encoder": f"{facts.encoder_id}, {facts.dim} dimensions, crop {facts.crop_rule}",
        "data set": f"{facts.dataset_name}, {facts.dataset_images} images "
        f"(ids {facts.dataset_fingerprint[:12]})",
        "proposals": facts.proposals + (", with scores" if facts.has_scores else ", no scores"),
        "images": f"{manifest.images} of {facts.dataset_images}",
        "regions": str(manifest.regions),
        "shards": f"{len(manifest.shards)}, {manifest.bytes / 1e6:.1f} MB",
    }
    finished = is_finished(path)
    if finished and manifest.images:
        per_image = RegionStore(path).regions_per_image
        lines["regions"] += (
            f" ({per_image.min()} to {per_image.max()} per image, mean {per_image.mean():.1f})"
        )
    lines["state"] = "finished" if finished else "unfinished: run the command that builds it again"
    for name, text in lines.items():
        print(f"{name + ':':<11}{text}")


@app.command()
def verify(
    path: Path = _STORE,
    drop_damaged: bool = typer.Option(
        False, "--drop-damaged", help="Take damaged shards out; building again fills the gap."
    ),
) -> None:
    """Read every byte of a store and name the shards that are damaged. Exit code 1: some are."""
    from tqdm import tqdm

    from ovd_d2.region_store import drop_shards, read_all_manifests
    from ovd_d2.region_store import verify as verify_store

    with tqdm(unit="shard", delay=5, disable=None) as bar:

        def on_shard(done: int, shards: int) -> None:
            bar.total = shards
            bar.update(done - bar.n)

        problems = verify_store(path, on_shard)
    for problem in problems:
        print(problem.what)
    if problems and drop_damaged:
        drop_shards(path, [problem.file for problem in problems])
        print(f"dropped {len(problems)}; run the command that builds the store again")
    elif problems:
        raise typer.Exit(1)
    else:
        manifest = read_all_manifests(path)
        print(f"{path}: {manifest.images} images, {manifest.regions} regions, all intact")


@app.command("import")
def import_(
    source: Path = _SOURCE,
    annotations: Path = _ANNOTATIONS,
    out: Path = _OUT,
    dataset: str = typer.Option(..., help="Name of the data set of --annotations."),
    format: str = typer.Option("object-centric-ovd", help="Whose files they are."),
    encoder: str = typer.Option(
        "openai-clip:ViT-B/32", help="The model that made the embeddings; it is not loaded."
    ),
    dim: int = typer.Option(512, min=1, help="Width of an embedding."),
    topk: int = typer.Option(0, min=0, help="Regions to keep per image, best first; 0: all."),
) -> None:
    """Make a region store of what another project published. Nothing of the files is run."""
    from tqdm import tqdm

    from ovd_d2.encoders import text_encoder_id
    from ovd_d2.errors import OVDError
    from ovd_d2.region_store.object_centric_ovd import import_object_centric_ovd

    if format != "object-centric-ovd":
        raise OVDError(f"--format {format} is unknown: object-centric-ovd is what can be imported")
    with tqdm(unit="image", delay=5, disable=None) as bar:

        def on_image(done: int, images: int) -> None:
            bar.total = images
            bar.update(done - bar.n)

        report = import_object_centric_ovd(
            source,
            annotations,
            out,
            encoder_id=text_encoder_id(encoder),
            dataset_name=dataset,
            dim=dim,
            topk=topk or None,
            on_image=on_image,
        )
    print(
        f"{out}: {report.images} images; {report.images_without_file} images of {annotations.name} "
        f"have no file, {report.files_without_image} files no image there"
    )
