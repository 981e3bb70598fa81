"""The options --tile and --overlap of ``ovd predict`` and ``ovd video``."""

import typer

TILE = typer.Option(
    None,
    "--tile",
    help="Cut larger images into tiles of so many pixels a side, to find what is small in them; "
    "the whole image is looked at too.",
)
OVERLAP = typer.Option(
    None, "--overlap", help="What neighbouring tiles have in common, 0 to 0.9; default: 0.2."
)
