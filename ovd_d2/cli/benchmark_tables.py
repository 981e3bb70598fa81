"""``ovd benchmark tables``: numbers of the benchmark in the pages, from the summaries that are kept
in ``configs/mini``."""

from pathlib import Path

import typer


def command(
    check: bool = typer.Option(
        False, "--check", help="Change nothing; exit 2 and name what differs from the summaries."
    ),
    take: Path | None = typer.Option(
        None,
        help="A summary.json of `ovd benchmark` or `ovd demo`: its rows take the place of those "
        "that are kept.",
    ),
) -> None:
    """Write the tables, numbers and pictures of the pages from the kept summaries.

    The summaries are configs/mini/benchmark_FAMILY.json. A page says by a comment, as in
    docs/results.md, which of them it shows where.
    """
    from ovd_d2.benchmarks.recipes import figures, pages, summaries
    from ovd_d2.benchmarks.recipes.runs import find_checkout
    from ovd_d2.cli.benchmark import ROWS
    from ovd_d2.errors import OVDError

    root = find_checkout("ovd benchmark tables")
    if take is not None:
        if check:
            raise OVDError("--take changes the summaries, --check nothing: give one of them.")
        for family, rows in summaries.take(take, root, list(ROWS)).items():
            print(f"{summaries.summary_file(family, root).relative_to(root)}: {', '.join(rows)}")
    differences = pages.update_pages(root, write=not check)
    drawn = figures.update_figures(root, write=not check)
    if check and (differences or drawn):
        found = "; ".join([*pages.told(differences), *drawn])
        raise OVDError(f"Not as in the summaries: {found}. To mend it, {pages.REMEDY}.")
    for name in dict.fromkeys([*(found.page for found in differences), *drawn]):
        print(f"{name} written")
    if not differences and not drawn:
        print("All tables and pictures are as in the summaries.")
