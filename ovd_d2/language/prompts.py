"""Prompt templates: how a class name becomes the sentences that the text encoder reads.

Letter: P is the number of templates of a prompt set.
"""

import re
from importlib import resources
from os import PathLike
from pathlib import Path

from ovd_d2.errors import OVDError

_FIELD = re.compile(r"\{article\}|\{\}")


def load_prompts(name_or_file: str | PathLike) -> tuple[str, ...]:
    """The P templates of a prompt set.

    Args:
        name_or_file: a key of ``PROMPT_SETS``; the path of a UTF-8 text file with one template per
            line (blank lines and lines that start with "# " are skipped); or one template written
            out, such as ``"a sketch of a {}"``.

    Returns:
        P >= 1 templates. ``{}`` stands for the class name, ``{article}`` for "a" or "an".

    Raises:
        OVDError: no such set or file, or a template without ``{}`` or with another ``{field}``.
    """
    spec = str(name_or_file)
    if spec in PROMPT_SETS:
        return PROMPT_SETS[spec]
    if "{}" in spec:
        _check_template(spec, "prompt")
        return (spec,)
    try:
        text = Path(spec).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise OVDError(
            f"prompts '{spec}' are neither a prompt set ({', '.join(PROMPT_SETS)}) nor a readable "
            "text file of templates"
        ) from error
    templates = _template_lines(text)
    if not templates:
        raise OVDError(f"prompt file {spec} holds no template; write one per line, with a {{}}")
    for template in templates:
        _check_template(template, f"prompt file {spec}")
    return templates


def clean_name(name: str) -> str:
    """A class name as a prompt shows it.

    ViLD's rule: "_" becomes a space, "/" becomes " or ", lower case, no full stop at the end; runs
    of white space become one space. "Bow_(decorative_ribbons)" -> "bow (decorative ribbons)",
    "traffic light/signal" -> "traffic light or signal".

    Raises:
        OVDError: nothing is left of the name.
    """
    words = name.replace("_", " ").replace("/", " or ").lower().split()
    cleaned = " ".join(words).rstrip(". ")
    if not cleaned:
        raise OVDError(f"class name {name!r} has no letters left after cleaning; rename the class")
    return cleaned


def article(cleaned_name: str) -> str:
    """ViLD's rule by letter: "an" before a name that starts with a, e, i, o or u, else "a"."""
    return "an" if cleaned_name[0] in "aeiou" else "a"


def fill(template: str, name: str) -> str:
    """``template`` with ``{}`` replaced by the cleaned name and ``{article}`` by its article.

    Raises:
        OVDError: nothing is left of the name after cleaning.
    """
    cleaned = clean_name(name)
    return _FIELD.sub(
        lambda field: cleaned if field.group() == "{}" else article(cleaned), template
    )


def _check_template(template: str, source: str) -> None:
    rest = _FIELD.sub("", template)
    if "{}" not in template or "{" in rest or "}" in rest:
        raise OVDError(
            f"{source}: template '{template}' must hold {{}} for the class name and no other "
            "field than {article}"
        )


def _template_lines(text: str) -> tuple[str, ...]:
    lines = (line.strip() for line in text.split("\n"))
    return tuple(line for line in lines if line and not line.startswith("# "))


def _packaged(file_name: str) -> tuple[str, ...]:
    file = resources.files("ovd_d2.language") / file_name
    return _template_lines(file.read_text(encoding="utf-8"))


def _this_is(template: str) -> str:
    return "This is " + template if template.startswith(("a", "the")) else template


_VILD63 = _packaged("templates_vild63.txt")

# Name -> templates.
PROMPT_SETS: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    # RKD and Detic's "a+photo+cname" files: no full stop.
    "photo": ("a photo of a {}",),
    # ViLD's single prompt.
    "article_photo": ("a photo of {article} {}.",),
    "vild63": _VILD63,
    # ViLD's demo also puts "This is " before texts that start with "a" or "the".
    "vild63_this_is": tuple(_this_is(template) for template in _VILD63),
    "imagenet80": _packaged("templates_imagenet80.txt"),
    # The seven of them that do as well (CLIP's notes on prompt engineering; GroupViT).
    "imagenet7": (
        "itap of a {}.",
        "a bad photo of a {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),  # fmt: skip
}
