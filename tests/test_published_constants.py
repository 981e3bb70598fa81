"""Every yaml of configs/clip, detclip, glip, mavl, rkd and vild against the published constants."""

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg
from published_constants import RECIPES as OF_RKD_AND_VILD
from published_constants_clip import RECIPES as OF_CLIP
from published_constants_detclip import RECIPES as OF_DETCLIP
from published_constants_glip import RECIPES as OF_GLIP
from published_constants_mavl import RECIPES as OF_MAVL

from ovd_d2 import add_ovd_config
from ovd_d2.data.mixing import read_sources
from ovd_d2.errors import OVDError

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = OF_RKD_AND_VILD | OF_CLIP | OF_DETCLIP | OF_GLIP | OF_MAVL
FILES = {
    str(path.relative_to(CONFIGS).with_suffix("")): path
    for method in ("clip", "detclip", "glip", "mavl", "rkd", "vild")
    for path in sorted((CONFIGS / method).glob("*.yaml"))
}
OURS = ("VERSION", "OUTPUT_DIR")  # no published constants


def flat(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values; tuples as lists."""
    found = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = list(value) if isinstance(value, tuple) else value
    return found


@cache
def read(path: Path | None = None) -> CfgNode:
    """The config of a yaml; without one the defaults. Not to be changed."""
    cfg = get_cfg()
    add_ovd_config(cfg)
    if path is not None:
        cfg.merge_from_file(str(path))
    return cfg


@cache
def defaults() -> dict[str, Any]:
    return flat(read())


def sources_of(cfg: CfgNode) -> dict[str, tuple[float, dict[str, Any]]]:
    """Name -> (images for each image of the first source, keys that differ from the whole)."""
    if not cfg.DATASETS.SOURCES:
        return {}
    sources = read_sources(cfg)
    images = [float(s.ratio) * s.cfg.SOLVER.IMS_PER_BATCH for s in sources]
    whole = flat(cfg)
    differ = [
        {k: v for k, v in flat(s.cfg).items() if v != whole[k] and not k.endswith("VOCABULARY")}
        for s in sources
    ]
    for one in differ:
        one.pop("DATASETS.SOURCES")
    return {s.name: (n / images[0], d) for s, n, d in zip(sources, images, differ)}


def deviations(cfg: CfgNode, published: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key -> (ours, published): wherever they differ, and where ours is no default and none was
    published."""
    ours, usual = flat(cfg), defaults()
    wrong = {}
    for key in {*published, *(k for k in ours if ours[k] != usual[k])} - {*OURS}:
        mine = ours[key]
        if key == "DATASETS.SOURCES":
            try:
                mine = sources_of(cfg)
            except OVDError as error:
                mine = str(error)
        wanted = published.get(key, "none")
        wanted = list(wanted) if isinstance(wanted, tuple) else wanted
        equal = mine == (pytest.approx(wanted, rel=1e-9) if isinstance(wanted, float) else wanted)
        if not equal or (isinstance(mine, bool) != isinstance(wanted, bool)):
            wrong[key] = (mine, wanted)
    return wrong


def test_the_table_is_of_all_recipes():
    assert set(RECIPES) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_recipe_has_the_published_constants(name):
    cfg = read(FILES[name])
    assert deviations(cfg, RECIPES[name]) == {}
    assert "Base-" in name or cfg.OUTPUT_DIR.split("/", 1) == ["output", name]


def leaves(content: Any, place: tuple = ()) -> list[tuple]:
    """Where the constants of a yaml are: paths of keys and indices."""
    if isinstance(content, dict):
        return [p for k, v in content.items() for p in leaves(v, (*place, k))]
    if isinstance(content, list) and place[-1] in ("SOURCES", "OPTS"):
        return [p for k, v in enumerate(content) for p in leaves(v, (*place, k))]
    return [place]


def changed(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 + 3
    if isinstance(value, list):
        return [*value[:-1], changed(value[-1])] if value else ["x"]
    if ")" not in value:
        return value + "x"
    return re.sub(r"(\d,?\))$", r"1\1", value.replace('")', 'x")').replace('",)', 'x",)'))


def constants_in(content: dict) -> list[tuple]:
    """The leaves that are constants: not what is ours, names of sources, and the keys in OPTS."""
    return [
        place
        for place in leaves(content)
        if place[0] not in ("_BASE_", *OURS)
        and not (place[0] == "DATASETS" and place[-1] == "NAME")
        and not (place[-2:-1] == ("OPTS",) and place[-1] % 2 == 0)
    ]


@pytest.mark.parametrize("name", FILES)
def test_any_one_changed_constant_is_found(name):
    """Every constant in every yaml, changed alone, makes the test above fail."""
    content = yaml.safe_load(FILES[name].read_text())
    cfg, unnoticed = read(FILES[name]).clone(), []
    for place in constants_in(content):
        mutant = copy.deepcopy(content)
        inside = mutant
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = changed(inside[place[-1]])
        # What merging the changed yaml does: this one key of the config becomes another.
        keys = place[: place.index("SOURCES") + 1] if "SOURCES" in place else place
        node = cfg
        for key in keys[:-1]:
            node, mutant = node[key], mutant[key]
        before = node[keys[-1]]
        node.merge_from_list([keys[-1], mutant[keys[-1]]])
        if not deviations(cfg, RECIPES[name]):
            unnoticed.append((place, inside[place[-1]]))
        node[keys[-1]] = before
    assert unnoticed == []
    assert deviations(cfg, RECIPES[name]) == {}
