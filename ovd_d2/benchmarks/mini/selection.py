"""How the 160 categories of the mini benchmark were chosen. The result is frozen in
``categories.json``; this file documents it, and a test runs it again.

The rule: concrete animals, plants, food and things that all five art styles draw, with a short
name; no people, faces, flags, symbols or scenes. Look-alikes are removed by comparing the artwork
of the training styles only. Then a seeded draw takes 160, in proportion to each group's size, and a
second seeded draw makes a quarter of every group novel. Nothing was tuned on detection results.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from ovd_d2.benchmarks.mini.artwork import Artwork, render_sprite
from ovd_d2.data.datasets.mini.splits import (
    NUM_CATEGORIES,
    NUM_NOVEL,
    TRAIN_STYLES,
    rng_for,
)

# Our group -> emoji subgroups it is drawn from.
GROUPS: dict[str, tuple[str, ...]] = {
    "animal": (
        "animal-mammal",
        "animal-bird",
        "animal-amphibian",
        "animal-reptile",
        "animal-marine",
        "animal-bug",
    ),
    "plant": ("plant-flower", "plant-other", "food-fruit", "food-vegetable"),
    "food": ("food-prepared", "food-asian", "food-sweet", "drink", "dishware"),
    "vehicle": ("transport-ground", "transport-water", "transport-air"),
    "clothing": ("clothing",),
    "leisure": ("sport", "game", "arts & crafts", "event", "musical-instrument", "award-medal"),
    "device": ("music", "phone", "computer", "light & video", "science", "medical", "writing"),
    "tool": ("office", "lock", "tool", "household", "money", "mail", "book-paper"),
}
# Parts, scenes, signs, events, pictures of people, and words that do not name what is drawn.
_EXCLUDED = """
aerial tramway, airplane arrival, airplane departure, badminton, bar chart, beans, bird, black
bird, black cat, black nib, blossom, blue book, bookmark tabs, bouquet, bowling, briefs, bubbles,
bug, bus stop, card index, chart decreasing, chart increasing, christmas tree, clinking glasses,
club suit, coin, computer disk, construction, control knobs, cooking, cricket game, custard,
dango, diamond suit, dodo, dragon, drop of blood, e mail, empty nest, euro banknote, feather,
field hockey, film frames, fireworks, flower playing, folding hand fan, gem stone, goal net, green
book, guide dog, hair pick, hatching chick, heart suit, herb, ice, ice hockey, inbox tray,
incoming envelope, japanese dolls, joker, knot, label, lacrosse, leafy green, ledger, level
slider, link, linked paperclips, locked, low battery, mammoth, mate, memo, metro, microbe, money
bag, motorway, mountain cableway, mountain railway, musical keyboard, musical note, musical notes,
musical score, oden, open book, optical disk, orange book, outbox tray, paw prints, performing
arts, pick, pig nose, pine decoration, ping pong, pound banknote, pouring liquid, railway track,
reminder ribbon, rosette, sauropod, seat, service dog, spade suit, sparkler, sparkles, spider web,
spouting whale, station, steaming bowl, stop sign, suspension railway, t rex, tamale, tanabata
tree, tennis, unicorn, unlocked, white flower, wing, woman's clothes, x ray, yen banknote
"""
EXCLUDED = frozenset(" ".join(name.split()) for name in _EXCLUDED.split(","))
MAX_WORDS = 2
# Two emoji look alike when their mean similarity over the training styles exceeds this.
MAX_SIMILARITY = 0.74


@dataclass(frozen=True)
class Candidate:
    """One emoji that may become a category. ``codepoints`` as in ``Artwork.find``."""

    codepoints: str
    name: str
    group: str


def clean_name(cldr_name: str) -> str:
    """ ":dog_face:" -> "dog face"; lower case, no punctuation but apostrophes."""
    name = cldr_name.strip(":").replace("’", "'").replace("_", " ").replace("-", " ")
    return re.sub(r"\s+", " ", name).strip().lower()


def candidates(artwork: Artwork) -> list[Candidate]:
    """All emoji that pass the rules on group, name and completeness, in Unicode's order."""
    import emoji

    group_of = {sub: group for group, subs in GROUPS.items() for sub in subs}
    records = json.loads(artwork.emoji_json.read_text(encoding="utf-8"))
    found = []
    for record in sorted(records, key=lambda r: r["sort_order"]):
        group = group_of.get(record["subcategory"])
        character = "".join(chr(int(code, 16)) for code in record["unified"].split("-"))
        name = clean_name(emoji.EMOJI_DATA.get(character, {}).get("en", ""))
        if group is None or not name or not record["has_img_google"]:
            continue
        words = name.split()
        if len(words) > MAX_WORDS or name in EXCLUDED or words[-1] == "face":
            continue
        if (
            words[0] in ("oncoming", "wilted", "closed", "mahjong", "locked")
            or not name[0].isalpha()
        ):
            continue
        if artwork.has_all_styles(record["unified"]):
            found.append(Candidate(record["unified"], name, group))
    return found


def descriptor(sprite: np.ndarray) -> np.ndarray:
    """Shape and colour of a sprite as one unit vector.

    Args:
        sprite: (h, w, 4) uint8 RGBA.

    Returns:
        (D,) float32: gradient histograms of brightness and outline, and coarse colours.
    """
    from PIL import Image
    from skimage.feature import hog

    image = Image.fromarray(sprite)
    side = max(image.size)
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    pixels = np.asarray(canvas.resize((64, 64), Image.Resampling.LANCZOS), np.float32) / 255
    alpha = pixels[..., 3:]
    grey = (pixels[..., :3] * alpha + (1 - alpha)).mean(-1)
    shape = np.concatenate(
        [hog(plane, 8, (8, 8), (2, 2)) for plane in (grey, alpha[..., 0])], dtype=np.float32
    )
    colour = (pixels * alpha).reshape(8, 8, 8, 8, 4).mean((1, 3)).ravel()
    colour = colour - colour.mean()
    parts = [part / max(float(np.linalg.norm(part)), 1e-6) for part in (shape, colour)]
    return np.concatenate(parts).astype(np.float32) / np.sqrt(2)


def similarities(artwork: Artwork, found: list[Candidate]) -> np.ndarray:
    """(K, K) mean cosine of the descriptors over the training styles, in [-1, 1]."""
    total = np.zeros((len(found), len(found)), np.float32)
    for style in TRAIN_STYLES:
        rows = []
        for candidate in found:
            path = artwork.find(style, candidate.codepoints)
            assert path is not None  # candidates() asked has_all_styles
            rows.append(descriptor(render_sprite(path, 64)))
        table = np.stack(rows)
        total += table @ table.T
    return total / len(TRAIN_STYLES)


def without_look_alikes(found: list[Candidate], similarity: np.ndarray) -> list[Candidate]:
    """Keeps a candidate unless it looks like one that was kept before it."""
    kept: list[int] = []
    for index in range(len(found)):
        if not kept or similarity[index, kept].max() <= MAX_SIMILARITY:
            kept.append(index)
    return [found[index] for index in kept]


def quotas(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Splits ``total`` in proportion to ``sizes`` by largest remainders."""
    exact = {key: total * size / sum(sizes.values()) for key, size in sizes.items()}
    share = {key: int(value) for key, value in exact.items()}
    by_remainder = sorted(exact, key=lambda key: share[key] - exact[key])
    for key in by_remainder[: total - sum(share.values())]:
        share[key] += 1
    return share


def _draw(found: list[Candidate], total: int, purpose: str) -> list[Candidate]:
    """``total`` of the candidates, in proportion to the groups, in their old order."""
    by_group: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in found:
        by_group[candidate.group].append(candidate)
    share = quotas({group: len(members) for group, members in by_group.items()}, total)
    chosen = set()
    for group, members in by_group.items():
        picks = rng_for(purpose, group).permutation(len(members))[: share[group]]
        chosen |= {members[index].codepoints for index in picks}
    return [candidate for candidate in found if candidate.codepoints in chosen]


def select_categories(artwork: Artwork) -> list[tuple[Candidate, bool]]:
    """The 160 categories and whether each is novel, in alphabetical order of their names."""
    found = candidates(artwork)
    distinct = without_look_alikes(found, similarities(artwork, found))
    chosen = _draw(distinct, NUM_CATEGORIES, "categories")
    novel = {candidate.codepoints for candidate in _draw(chosen, NUM_NOVEL, "novel")}
    ordered = sorted(chosen, key=lambda candidate: candidate.name)
    return [(candidate, candidate.codepoints in novel) for candidate in ordered]


# Unlabelled symbols that lie among the objects.
CLUTTER_SUBGROUPS = (
    "arrow",
    "av-symbol",
    "other-symbol",
    "alphanum",
    "zodiac",
    "transport-sign",
    "heart",
    "math",
)
NUM_CLUTTER = {"train": 50, "eval": 25}


def select_clutter(artwork: Artwork) -> dict[str, list[str]]:
    """Code points of symbols for training and for evaluation images, disjoint."""
    records = json.loads(artwork.emoji_json.read_text(encoding="utf-8"))
    codes = [
        record["unified"]
        for record in sorted(records, key=lambda r: r["sort_order"])
        if record["subcategory"] in CLUTTER_SUBGROUPS
        and record["has_img_google"]
        and artwork.has_all_styles(record["unified"])
    ]
    order = [codes[index] for index in rng_for("clutter").permutation(len(codes))]
    first = NUM_CLUTTER["train"]
    return {"train": order[:first], "eval": order[first : first + NUM_CLUTTER["eval"]]}
