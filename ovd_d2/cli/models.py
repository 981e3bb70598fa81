"""``ovd models``: trained models of others, and ours."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ovd_d2.model_zoo import Entry

app = typer.Typer(help="The model zoo: what there is, and how it comes here.", no_args_is_help=True)
_NAME = typer.Argument(..., metavar="NAME", help="One of `ovd models list`.")
_JSON = typer.Option(False, "--json", help="Print json.")
_OUT = typer.Option(None, help="Folder of the converted model; default: where --model finds it.")
_ACCEPT = typer.Option(
    False, "--accept-licence", help="You want it for what its licence allows: not commercially."
)


@app.command("list")
def list_models(as_json: bool = _JSON) -> None:
    """Every model: whose it is, its size and licence, and whether it is here."""
    from ovd_d2.model_zoo import read_entries, state

    entries = read_entries().values()
    if as_json:
        print(json.dumps([_facts(entry) for entry in entries], indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("name", "system", "size", "licence", "comes", "here"):
        table.add_column(name, justify="right" if name == "size" else "left", no_wrap=True)
    for entry in entries:
        licence = f"{entry.licence} (non-commercial)" if entry.non_commercial else entry.licence
        row = (entry.name, entry.system, _size(entry.size), licence, _comes(entry), state(entry))
        table.add_row(*map(Text, row))
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(table)


@app.command()
def info(name: str = _NAME, as_json: bool = _JSON) -> None:
    """All that is known of a model."""
    from ovd_d2.model_zoo import convert_command, find_entry, state

    entry = find_entry(name)
    if as_json:
        print(json.dumps(_facts(entry), indent=2))
        return
    print(f"{entry.name}: {entry.system}")
    rows = {
        "licence": f"{entry.licence}{', for non-commercial use alone' * entry.non_commercial}",
        "from": entry.where or "ships with ovd_d2",
        "": _checked(entry),
        "size": _size(entry.size),
        "sha256": entry.sha256,
        "here": state(entry),
        "convert": convert_command(entry),
        "config": f"configs/{entry.config}" if entry.config else "",
        "use": entry.use or f"--model {entry.name}",
        "needs": entry.needs,
        "note": entry.note,
        "facts": entry.source,
    }
    for key, value in rows.items():
        if value:
            print(f"  {key:8} {value}")
    for result in entry.results:
        numbers = ", ".join(f"{key} {value:g}" for key, value in result.values.items())
        print(f"  theirs   {result.data}, {result.protocol}: {numbers}")


@app.command()
def download(name: str = _NAME, out: Path | None = _OUT, accept_licence: bool = _ACCEPT) -> None:
    """Download a model, compare it, and convert it at once if `ovd convert` can.

    A download that broke off goes on where it stopped. Nothing in a file is run.
    """
    from tqdm import tqdm

    from ovd_d2.model_zoo import find_entry

    entry = find_entry(name)
    from ovd_d2 import register
    from ovd_d2.jobs.download_model import download_model

    register()
    with tqdm(
        unit="B", unit_scale=True, unit_divisor=1024, desc=entry.file_name, delay=1, disable=None
    ) as bar:

        def on_bytes(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        done = download_model(entry, out, accept_licence=accept_licence, on_bytes=on_bytes)
    if done.file is not None:
        print(f"{done.file}: here{', its sha256 is right' if entry.sha256 else ''}")
    if done.folder is not None:
        print(f"{done.folder}: {entry.use or f'for --model {out or entry.name}'}")
    elif entry.use:
        print(f"{entry.name}: {entry.use}")
    if done.folder is not None and entry.needs:
        print(f"  its first use downloads {entry.needs}")
    for fact in done.facts:
        print(f"  {fact}")


def _facts(entry: "Entry") -> dict[str, Any]:
    from ovd_d2.model_zoo import convert_command, state

    return {**asdict(entry), "convert": convert_command(entry), "state": state(entry)}


def _comes(entry: "Entry") -> str:
    """How it gets here."""
    if entry.packaged:
        return "with ovd_d2"
    return "from the hub" if entry.hub else "download" if entry.url else "by hand"


def _checked(entry: "Entry") -> str:
    """How far the address can be relied on; "" where there is none."""
    if entry.page:
        return "a person's browser alone can download it; the page was not verified"
    if entry.packaged or entry.verified:
        return ""
    return "this address was not verified by a download"


def _size(size: int | None) -> str:
    if size is None:
        return ""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
