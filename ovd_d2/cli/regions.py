"""``ovd regions``: stores of precomputed region embeddings."""

from pathlib import Path

import typer

app = typer.Typer(
    help="Region stores: what a teacher makes of regions, precomputed.", no_args_is_help=True
)
_STORE = typer.Argument(..., metavar="STORE", help="Folder of the region store.")
_SOURCE = typer.Argument(..., metavar="DIR", help="Folder with the published files.")
_ANNOTATIONS = typer.Option(..., help="COCO or LVIS json that tells the id of each image name.")
_OUT = typer.Option(..., help="Folder of the region store; an interrupted import goes on.")


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

    from ovd_d2.errors import OVDError
    from ovd_d2.language import text_encoder_id
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
