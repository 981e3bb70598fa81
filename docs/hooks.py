"""What mkdocs makes itself: the reference of configuration keys, the pages that stand elsewhere in
the repository, and links to other files of it, which become plain words.
"""

import ast
import inspect
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EVERY_KEY = "<!-- every key -->"
ELSEWHERE = {  # page -> file of the repository
    "recipes.md": "configs/README.md",
    "data-sets.md": "datasets/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Any, config: Any, **_others: Any) -> Any:
    """Hook of mkdocs: adds the pages of :data:`ELSEWHERE` that there are."""
    from mkdocs.structure.files import File

    for page, path in ELSEWHERE.items():
        if (ROOT / path).is_file():
            text = (ROOT / path).read_text(encoding="utf-8")
            files.append(File.generated(config, page, content=relinked(text, path, page)))
    return files


def on_page_markdown(markdown: str, page: Any, **_others: Any) -> str:
    """Hook of mkdocs: fills in the keys, and mends links that leave ``docs/``."""
    if EVERY_KEY in markdown:
        markdown = markdown.replace(EVERY_KEY, config_reference())
    source = page.file.src_uri
    if source in ELSEWHERE:
        return markdown
    return relinked(markdown, f"docs/{source}", source)


def relinked(markdown: str, path: str, page: str) -> str:
    """``markdown`` with the links that it has as ``path`` of the repository turned into those of
    ``page`` of the site; a link to a file that is no page becomes its text."""
    pages = {file: name for name, file in ELSEWHERE.items()}

    def mend(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match["path"]))
        if target.startswith("docs/"):
            target = target.removeprefix("docs/")
        elif target in pages:
            target = pages[target]
        elif target == "README.md":
            target = "index.md"
        else:
            return match["text"]
        link = posixpath.relpath(target, posixpath.dirname(page) or ".")
        return f"[{match['text']}]({link}{match['anchor'] or ''})"

    return _LINK.sub(mend, markdown)


def config_reference() -> str:
    """Markdown: a heading per group of ``ovd_d2/config``, and a table of its keys with default,
    allowed values and the comment that stands above them in the source."""
    from detectron2.config import get_cfg

    from ovd_d2.config import GROUPS, add_ovd_config
    from ovd_d2.config.rules import by_key

    cfg = get_cfg()
    add_ovd_config(cfg)
    parts = []
    for group in GROUPS:
        rules = by_key(getattr(group, "RULES", ()))
        title = inspect.getdoc(group).split("\n\n")[0].replace("\n", " ")
        rows = ["| key | default | meaning |", "|---|---|---|"]
        for key, comment in keys_of(inspect.getsource(group)):
            wanted = f" Must be {rules[key].wanted}." if key in rules else ""
            rows.append(f"| `{key}` | `{value_of(cfg, key)!r}` | {cell(comment + wanted)} |")
        parts.append(f"## {title.rstrip('.')}\n\n" + "\n".join(rows))
    return "\n\n".join(parts)


def keys_of(source: str) -> list[tuple[str, str]]:
    """(key, comment above it) of the assignments to a config in ``source``, in its order.

    A mapping, ``CN({...})``, gives a key for each of its entries; the comment stands at the first.
    A line without a comment goes on from the one above.
    """
    lines, found, names = source.splitlines(), [], {"cfg": ""}
    assignments = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assign)]
    last, before = "", -1
    for node in sorted(assignments, key=lambda one: one.lineno):
        keys = [key for target in node.targets if (key := dotted(target, names)) is not None]
        for target in node.targets:
            if isinstance(target, ast.Name) and keys:
                names[target.id] = keys[0] + "."
        if not keys:
            continue
        comment = comment_above(lines, node.lineno - 1)
        if not comment and node.lineno == before + 1:
            comment = last
        last, before = comment, node.end_lineno
        entries = dict_keys(node.value)
        if entries is None:
            found.append((keys[0], comment))
        else:
            found += [
                (f"{keys[0]}.{entry}", comment if not place else "see above")
                for place, entry in enumerate(entries)
            ]
    return found


def dotted(target: ast.expr, names: dict[str, str]) -> str | None:
    """ "MODEL.GLIP.FUSION" of ``_C.FUSION`` or ``cfg.MODEL.GLIP.FUSION``; None: no key."""
    words = []
    while isinstance(target, ast.Attribute):
        words.append(target.attr)
        target = target.value
    if not words or not isinstance(target, ast.Name) or target.id not in names:
        return None
    return names[target.id] + ".".join(reversed(words))


def dict_keys(value: ast.expr) -> list[str] | None:
    """Keys of ``CN({...})`` or ``CN()``; None: another value."""
    if not (isinstance(value, ast.Call) and getattr(value.func, "id", "") == "CN"):
        return None
    return [key.value for key in value.args[0].keys] if value.args else []


def comment_above(lines: list[str], number: int) -> str:
    """The comment that ends in the line before ``number`` (from 0), as one text."""
    words = []
    while number > 0 and (match := re.match(r"\s*# ?(.*)", lines[number - 1])):
        words.insert(0, match[1])
        number -= 1
    return " ".join(words)


def value_of(cfg: Any, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def cell(text: str) -> str:
    """``text`` inside a table: no bars, and no tags."""
    return text.replace("|", "\\|").replace("<", "&lt;").strip()
