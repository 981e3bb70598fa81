"""One web page of a demo's results: the table, and the pictures that lie beside it."""

import html
from collections.abc import Mapping, Sequence

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .4rem .8rem; border-bottom: 1px solid #8884; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 2rem 0; } img { max-width: 100%; height: auto; background: white; }
figcaption { color: #777; } @media (prefers-color-scheme: dark) { :root { color-scheme: dark; } }
"""


def results_page(
    title: str,
    said: Sequence[str],
    table: Mapping[str, Mapping[str, float | None]],
    pictures: Mapping[str, str],
) -> str:
    """HTML that needs nothing from elsewhere but the pictures.

    Args:
        title: of the page.
        said: sentences under it.
        table: row -> column -> number, one decimal is shown; None: a dash. Rows have the same
            columns.
        pictures: file, from where the page is -> what it shows.
    """
    columns = list(next(iter(table.values()), {}))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("model", *columns))
    rows = "\n".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{'-' if v is None else f'{v:.1f}'}</td>" for v in row.values())
        + "</tr>"
        for name, row in table.items()
    )
    figures = "\n".join(
        f'<figure><img src="{html.escape(file)}" alt="{html.escape(shows)}"/>'
        f"<figcaption>{html.escape(shows)}</figcaption></figure>"
        for file, shows in pictures.items()
    )
    paragraphs = "\n".join(f"<p>{html.escape(sentence)}</p>" for sentence in said)
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head>
<body>
<h1>{html.escape(title)}</h1>
{paragraphs}
<table><tr>{head}</tr>
{rows}
</table>
{figures}
</body>
</html>
"""
