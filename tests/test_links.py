"""Links of our markdown pages: files and anchors are there; addresses are https and well formed."""

import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "configs/README.md")
]
PAGES += [ROOT / "datasets/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = {str(page.relative_to(ROOT)): page for page in PAGES if page.exists()}
MARKDOWN = MarkdownIt("commonmark").enable("table")


def tokens(text):
    """Every token; what stands indented (a note, a tab) is text too."""
    for token in MARKDOWN.parse(text):
        if token.type == "code_block":
            yield from tokens(token.content)
        yield from [token, *(token.children or [])]


def links(text):
    found = []
    for token in tokens(text):
        found += [token.attrs[name] for name in ("href", "src") if name in token.attrs]
        if token.type in ("html_block", "html_inline"):
            found += re.findall(r'(?:href|src)="([^"]*)"', token.content)
        if token.type == "text" and re.search(r"\]\[|\]\(", token.content):
            found.append(f"a link that is none: {token.content}")
    return found


def on_github(title):
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def on_the_site(title):
    """As Python-Markdown's table of contents, which MkDocs uses."""
    ascii_text = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_text).strip().lower())


def anchors(page):
    """Those that work wherever the page is read: pages of docs on GitHub and on the site."""
    text = page.read_text(encoding="utf-8")
    stream = list(tokens(text))
    titles = [
        "".join(child.content for child in inline.children)
        for token, inline in zip(stream, stream[1:])
        if token.type == "heading_open"
    ]
    found = {on_github(title) for title in titles}
    if "docs" in page.relative_to(ROOT).parts:
        found &= {on_the_site(title) for title in titles}
    marks = [token.content for token in stream if token.type in ("html_block", "html_inline")]
    return found | set(re.findall(r'(?:id|name)="([^"]*)"', "".join(marks)))


def fault(page, link):
    """What is wrong with a link of a page; "" if nothing."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or " " in link:
        host = re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc, re.IGNORECASE)
        fine = parts.scheme == "https" and host and not re.search(r"[\s<>\"{}|\\^`]", link)
        return "" if fine else "not an https address"
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_relative_to(ROOT) or not target.exists():
        return "no such file"
    if parts.fragment and (target.suffix != ".md" or parts.fragment not in anchors(target)):
        return "no such anchor"
    return ""


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name):
    text = PAGES[name].read_text(encoding="utf-8")
    faults = {link: fault(PAGES[name], link) for link in links(text)}
    assert {link: reason for link, reason in faults.items() if reason} == {}


def test_the_pages_with_most_links_are_read():
    assert len(links(PAGES["README.md"].read_text(encoding="utf-8"))) > 20


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[a](README.md)", ""),
        ("[a](README.md#licence)", ""),
        ("[a](configs)", ""),
        ("[a](https://arxiv.org/abs/2104.13921)", ""),
        ("`[a](nowhere.md)`", ""),
        ("[a](nowhere.md)", "no such file"),
        ("[a](../../etc/passwd)", "no such file"),
        ("[a](README.md#nothing)", "no such anchor"),
        ("| [a](#nothing) |\n|---|\n", "no such anchor"),
        ("!!! note\n\n    [a](nowhere.md)", "no such file"),
        ("[a][b]\n\n[b]: nowhere.md", "no such file"),
        ("![a](nowhere.jpg)", "no such file"),
        ('<img src="nowhere.jpg">', "no such file"),
        ("[a](http://arxiv.org)", "not an https address"),
        ("[a](https://arxiv)", "not an https address"),
        ("[a](https://[arxiv.org)", "not an https address"),
        ("[a][nowhere]", "not an https address"),
        ("[a] (see [b](x y))", "not an https address"),
    ],
)
def test_a_fault_is_seen(text, reason):
    assert "".join(fault(ROOT / "README.md", link) for link in links(text)) == reason


@pytest.mark.parametrize(
    ("title", "github", "site"),
    [
        ("Two: words (LSeg)", "two-words-lseg", "two-words-lseg"),
        ("Names & words", "names--words", "names-words"),
        ("`ovd predict`", "ovd-predict", "ovd-predict"),
    ],
)
def test_anchors_of_titles(title, github, site):
    assert on_github(title) == github
    assert on_the_site(title) == site
