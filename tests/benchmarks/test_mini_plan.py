"""The frozen facts of the mini benchmark: categories, splits, counts, metadata, captions."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

import ovd_d2.data  # noqa: F401
from ovd_d2.benchmarks.mini.artwork import locate_artwork, render_sprite
from ovd_d2.benchmarks.mini.backgrounds import PHOTOS, draw_background, load_photos
from ovd_d2.benchmarks.mini.selection import quotas, select_categories, select_clutter
from ovd_d2.data.datasets.mini.captions import image_caption, object_caption, with_article
from ovd_d2.data.datasets.mini.categories import frequencies, load_categories, load_clutter
from ovd_d2.data.datasets.mini.registration import DATASETS, register_mini
from ovd_d2.data.datasets.mini.splits import (
    HELD_OUT_STYLE,
    SPLITS,
    STYLES,
    image_counts,
    plan_split,
    rng_for,
)
from ovd_d2.errors import OVDError


def test_160_distinct_categories_of_which_40_are_novel():
    categories = load_categories()
    assert len(categories) == 160
    assert len({c.name for c in categories}) == 160
    assert len({c.codepoints for c in categories}) == 160
    assert [frequencies().count(f) for f in "rcf"] == [40, 60, 60]
    novel_share = {}
    for c in categories:
        assert c.synonyms[0] == c.name
        assert c.definition
        novel_share.setdefault(c.group, []).append(c.is_novel)
    assert all(0.15 < np.mean(share) < 0.35 for share in novel_share.values())


def test_a_synonym_never_names_another_category():
    owner = {}
    for c in load_categories():
        for synonym in c.synonyms:
            assert owner.setdefault(synonym, c.name) == c.name


def test_frozen_training_counts_follow_from_the_plan():
    counts = image_counts(plan_split(SPLITS["train"], frequencies()))
    assert counts == [c.train_images for c in load_categories()]
    by_frequency = {f: [] for f in "rcf"}
    for c in load_categories():
        by_frequency[c.frequency].append(c.train_images)
    assert min(by_frequency["f"]) > max(by_frequency["r"]) >= min(by_frequency["r"])
    assert min(by_frequency["r"]) > max(by_frequency["c"])


def test_evaluation_splits_are_balanced():
    for split in (s for s in SPLITS.values() if not s.is_train):
        plan = plan_split(split, frequencies())
        assert len(plan) == split.num_images
        assert all(3 <= len(categories) <= 7 for categories in plan)
        objects = np.bincount(np.concatenate(plan), minlength=160)
        assert objects.max() - objects.min() <= 1


def test_training_and_evaluation_share_no_style_id_photo_or_clutter():
    train, val, test = SPLITS["train"], SPLITS["val"], SPLITS["test"]
    assert not set(train.styles) & set(val.styles + test.styles)
    assert val.styles == test.styles == (HELD_OUT_STYLE,)
    assert set(SPLITS["val_seen"].styles) == set(train.styles)
    assert all(split.backgrounds == "eval" for split in SPLITS.values() if not split.is_train)
    assert not {p.path for p in PHOTOS["train"]} & {p.path for p in PHOTOS["eval"]}
    assert not set(load_clutter()["train"]) & set(load_clutter()["eval"])
    ids = [image_id for split in SPLITS.values() for image_id in split.image_ids()]
    assert len(ids) == len(set(ids)) == 2800


def test_random_generators_depend_on_every_key():
    streams = [rng_for(*keys).random() for keys in (("a", 1), ("a", 2), ("b", 1), ("a", 1))]
    assert streams[0] == streams[3]
    assert len(set(streams)) == 3


def test_quotas_add_up():
    assert quotas({"a": 5, "b": 3, "c": 1}, 4) == {"a": 2, "b": 1, "c": 1}


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_backgrounds_are_whole_images(kind):
    photos = load_photos(kind)
    seen = set()
    for seed in range(60):
        pixels, words = draw_background(rng_for(kind, seed), kind, photos)
        assert pixels.shape == (192, 192, 3)
        assert pixels.min() >= 0 and pixels.max() <= 255 and np.isfinite(pixels).all()
        seen.add(words)
    assert len(seen) == len(photos) + 4  # every photo, three textures, plain


def test_metadata_is_there_before_any_file():
    assert set(DATASETS) <= set(DatasetCatalog)
    names = [c.name for c in load_categories()]
    novel = [c.is_novel for c in load_categories()]
    for name in DATASETS:
        meta = MetadataCatalog.get(name)
        assert meta.thing_classes == names
        assert meta.evaluator_type == "lvis"
        assert meta.is_novel == ([False] * 160 if name.endswith("train_all") else novel)
        counts = [entry["image_count"] for entry in meta.class_image_count]
        if name.endswith("train_base"):
            assert [count == 0 for count in counts] == novel
        else:
            assert min(counts) > 0


def test_a_benchmark_that_is_not_built_names_path_and_remedy(tmp_path, monkeypatch):
    from ovd_d2.data.datasets.mini import registration

    registered = {}
    monkeypatch.setattr(
        registration.DatasetCatalog, "register", lambda name, load: registered.update({name: load})
    )
    monkeypatch.setattr(
        registration.MetadataCatalog, "get", lambda name: type("M", (), {"set": lambda *_, **__: 0})
    )
    register_mini(tmp_path)
    with pytest.raises(OVDError, match=r"val\.json is missing: run `ovd mini build`.*README\.md"):
        registered["mini_v1_val"]()


def test_captions_name_what_is_there():
    categories = list(load_categories())
    for index in range(0, 160, 7):
        shown = [categories[index], categories[index - 1], categories[index]]
        caption = image_caption(rng_for(index), shown, "grass")
        for category in shown:
            assert any(synonym in caption for synonym in category.synonyms)
        assert any(s in object_caption(rng_for(index), shown[0]) for s in shown[0].synonyms)


@pytest.mark.parametrize(
    ("noun", "expected"), [("owl", "an owl"), ("kite", "a kite"), ("socks", "socks")]
)
def test_articles(noun, expected):
    assert with_article(noun) == expected


def test_every_category_is_drawn_in_every_style():
    artwork = locate_artwork()
    for category in load_categories():
        assert artwork.has_all_styles(category.codepoints), category.name
    for style in STYLES:
        sprite = render_sprite(artwork.find(style, load_categories()[0].codepoints))
        assert sprite.dtype == np.uint8 and max(sprite.shape[:2]) == 96
        visible = sprite[..., 3] > 8
        assert visible[0].any() and visible[-1].any()
        assert visible[:, 0].any() and visible[:, -1].any()


@pytest.mark.slow
def test_the_frozen_list_is_what_the_rule_selects():
    artwork = locate_artwork()
    chosen = [(c.codepoints, c.group, novel) for c, novel in select_categories(artwork)]
    assert chosen == [(c.codepoints, c.group, c.is_novel) for c in load_categories()]
    clutter = {kind: tuple(codes) for kind, codes in select_clutter(artwork).items()}
    assert clutter == load_clutter()
