"""Boxes, grounded captions and pairs in one training: their order and sizes, resuming, and what
becomes of damaged or useless entries under either policy."""

import itertools
import logging
import re

import pytest
import torch
from detectron2.config import get_cfg
from three_sources import (
    BATCHES,
    COLOURS,
    PAIR_SIDE,
    SHARD_SIZE,
    classes_of,
    make_three_sources,
    write_shards,
)

from ovd_d2.config import add_ovd_config
from ovd_d2.data.build import build_train_loader
from ovd_d2.errors import OVDError

ORDER = ["detection", "pairs", "detection", "grounding", "pairs"]  # of the ratios 2, 1, 2


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "GLIP"  # reads captions
    cfg.MODEL.OPEN_VOCAB.VOCABULARY = ""
    cfg.DATASETS.SOURCES = make_three_sources(tmp_path)
    cfg.DATASETS.TRAIN = (classes_of(tmp_path),)
    cfg.INPUT.PAIRS.COLOR_JITTER = 0.2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.MAX_CORRUPT_FRACTION = 0.0
    cfg.SEED = 7
    return cfg


def only(cfg, name, *opts):
    """``cfg`` with one of its sources, which gets further OPTS."""
    (source,) = [source for source in cfg.DATASETS.SOURCES if source["NAME"] == name]
    cfg.DATASETS.SOURCES = [{**source, "OPTS": [*source["OPTS"], *opts]}]
    return cfg


def plain(value):
    """Everything in a sample that a model could read, comparable."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.tolist())
    if hasattr(value, "get_fields"):
        return {key: plain(field) for key, field in value.get_fields().items()}
    return plain(value.tensor) if hasattr(value, "tensor") else value


def take(loader, count):
    return [
        [{key: plain(value) for key, value in sample.items()} for sample in batch]
        for batch in itertools.islice(loader, count)
    ]


def kind_of(sample):
    if "concepts" in sample:
        return "pairs"
    return "grounding" if "caption" in sample else "detection"


def captions(batches):
    return {sample["caption"] for batch in batches for sample in batch}


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# ---- the stream


def test_order_ratios_and_sizes(cfg):
    batches = take(build_train_loader(cfg), 20)
    kinds = [{kind_of(sample) for sample in batch} for batch in batches]
    assert all(len(kind) == 1 for kind in kinds)
    kinds = [kind.pop() for kind in kinds]
    assert kinds == ORDER * 4
    sizes = {kind: set() for kind in BATCHES}
    for kind, batch in zip(kinds, batches):
        assert len(batch) == BATCHES[kind]
        sizes[kind] |= {sample["image"][0] for sample in batch}
    assert sizes["pairs"] == {(3, PAIR_SIDE, PAIR_SIDE)}
    assert {min(size[1:]) for size in sizes["detection"]} == {40, 48}
    assert {min(size[1:]) for size in sizes["grounding"]} == {32}


def test_what_samples_are(cfg):
    for sample in itertools.chain(*take(build_train_loader(cfg), 10)):
        if kind_of(sample) == "detection":
            assert "gt_classes" in sample["instances"] and "concepts" not in sample
        elif kind_of(sample) == "grounding":
            assert "gt_phrases" in sample["instances"]
        else:
            caption, *phrases = sample["concepts"]
            assert caption == sample["caption"] and "instances" not in sample
            assert phrases == list(dict.fromkeys(re.findall(r"\w+ square", caption)))
            assert phrases and phrases[0].split()[0] in COLOURS


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_at_any_place_the_batches_are_the_same(cfg, workers):
    count, more = 11, 3
    whole = take(build_train_loader(cfg), count + more)  # without workers: they change nothing
    cfg.DATALOADER.NUM_WORKERS = workers
    running = build_train_loader(cfg)
    stream = iter(running)
    for step in range(count):
        if workers == 0 or step in (0, 1, 4, 10):  # starting processes takes long
            state = running.state_dict()
            resumed = build_train_loader(cfg)
            resumed.load_state_dict(state)
            assert resumed.state_dict() == state
            assert take(resumed, more) == whole[step : step + more], step
        next(stream)
    assert running.state_dict()["batches"] == count
    places = {name: s["batches"] for name, s in running.state_dict()["sources"].items()}
    expected = (ORDER * 3)[:count]
    assert places == {name: expected.count(name) for name in places}


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_is_exact_with_pairs_that_are_left_out(cfg, tmp_path, workers):
    """Replacements are drawn by the place in the stream."""
    write_shards(tmp_path / "pairs", 10, caption_of=lambda n: b"of the" if n % 2 else b"a mug")
    cfg = only(cfg, "pairs", "INPUT.PAIRS.WITHOUT_NOUN_PHRASE", "skip")
    whole = take(build_train_loader(cfg), 8)
    cfg.DATALOADER.NUM_WORKERS = workers
    first = build_train_loader(cfg)
    assert take(first, 3) == whole[:3]
    second = build_train_loader(cfg)
    second.load_state_dict(first.state_dict())
    assert take(second, 5) == whole[3:]


def test_the_source_is_named_with_what_is_wrong(cfg, tmp_path):
    (tmp_path / "pairs" / "00001.tar").unlink()
    with pytest.raises(OVDError, match=r"Source 'pairs' of DATASETS.SOURCES: .*00001\.tar does"):
        build_train_loader(cfg)


# ---- a missing or damaged shard


def damage_missing(path):
    path.unlink()


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:1500])


def damage_no_tar(path):
    path.write_bytes(b"no tar file" * 100)


def damage_header(path):
    """The header of the third member becomes nonsense, which tarfile takes for the end."""
    content = bytearray(path.read_bytes())
    place = content.index(b"000000006.png")
    content[place : place + 300] = b"?" * 300
    path.write_bytes(content)


DAMAGES = [damage_missing, damage_cut, damage_no_tar, damage_header]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_cannot_be_used_is_refused(cfg, tmp_path, damage):
    damage(tmp_path / "pairs" / "00001.tar")
    with pytest.raises(OVDError, match=r"00001\.tar (is damaged|does not exist)") as caught:
        build_train_loader(only(cfg, "pairs"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_cannot_be_used_is_left_out(cfg, tmp_path, caplog, damage):
    write_shards(tmp_path / "pairs", 15, caption_of=b"pair %d".__mod__)
    damage(tmp_path / "pairs" / "00001.tar")
    pairs = ["DATASETS.TRAIN", [f"pairs:{tmp_path}/pairs/{{00000..00002}}.tar"]]
    cfg = only(cfg, "pairs", *pairs, "INPUT.PAIRS.DAMAGED_SHARDS", "skip")
    with caplog.at_level(logging.WARNING):
        loader = build_train_loader(cfg)
    (message,) = warnings(caplog)
    assert "leaves out 1 of 3 shards and 0 captions of the others, 10 pairs remain" in message
    assert "00001.tar" in message
    whole = {*range(SHARD_SIZE), *range(2 * SHARD_SIZE, 3 * SHARD_SIZE)}
    assert captions(take(loader, 12)) == {f"pair {number}" for number in whole}


def test_no_shard_at_all_is_refused_under_either_policy(cfg, tmp_path):
    for shard in (tmp_path / "pairs").iterdir():
        damage_cut(shard)
    for policy, says in (("refuse", r"00000\.tar is damaged"), ("skip", "none of 2 shards")):
        with pytest.raises(OVDError, match=says) as caught:
            build_train_loader(only(cfg, "pairs", "INPUT.PAIRS.DAMAGED_SHARDS", policy))
        assert "\n" not in str(caught.value)


def test_many_lost_shards_are_counted_and_some_named(cfg, tmp_path, caplog):
    pairs = ["DATASETS.TRAIN", [f"pairs:{tmp_path}/pairs/{{00000..00099}}.tar"]]
    cfg = only(cfg, "pairs", *pairs, "INPUT.PAIRS.DAMAGED_SHARDS", "skip")
    with caplog.at_level(logging.WARNING):
        build_train_loader(cfg)
    (message,) = warnings(caplog)
    assert "98 of 100 shards" in message and message.count("does not exist") == 5
    for end in ("99999999", "9" * 30):
        far = [f"pairs:{tmp_path}/pairs/{{0..{end}}}.tar"]
        with pytest.raises(OVDError, match="too large"):
            build_train_loader(only(cfg, "pairs", "DATASETS.TRAIN", far))


def test_the_policy_ends_with_the_loader(cfg, tmp_path):
    """It is of one source: others, and later uses of the same data, still refuse."""
    (tmp_path / "pairs" / "00001.tar").unlink()
    skipping = only(cfg.clone(), "pairs", "INPUT.PAIRS.DAMAGED_SHARDS", "skip")
    build_train_loader(skipping)
    with pytest.raises(OVDError, match=r"00001\.tar does not exist"):
        build_train_loader(only(cfg, "pairs"))
    mixed = cfg.clone()
    (source,) = skipping.DATASETS.SOURCES
    mixed.DATASETS.SOURCES = [source, {**cfg.DATASETS.SOURCES[0], "NAME": "other"}]
    with pytest.raises(OVDError, match=r"Source 'other' .*00001\.tar does not exist"):
        build_train_loader(mixed)


def test_an_unknown_policy(cfg):
    with pytest.raises(OVDError, match="DAMAGED_SHARDS is 'ignore'; it must be refuse or skip"):
        build_train_loader(only(cfg, "pairs", "INPUT.PAIRS.DAMAGED_SHARDS", "ignore"))


# ---- a damaged member of a shard


@pytest.fixture
def spoilt(cfg, tmp_path):
    """The pixels of pair 2 are nonsense behind a whole header."""
    path = tmp_path / "pairs" / "00000.tar"
    content = bytearray(path.read_bytes())
    place = content.index(b"IDAT", content.index(b"000000002.png"))
    content[place : place + 200] = b"?" * 200
    path.write_bytes(content)
    return cfg


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_refused(spoilt, workers):
    cfg = only(spoilt, "pairs", "DATALOADER.NUM_WORKERS", workers)
    with pytest.raises(OVDError, match="MAX_CORRUPT_FRACTION allows: .*000000002.png") as caught:
        take(build_train_loader(cfg), 5)
    assert "\n" not in str(caught.value) and "1 of 10" in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_left_out(spoilt, caplog, workers):
    cfg = only(spoilt, "pairs", "DATALOADER.MAX_CORRUPT_FRACTION", 0.1,
               "DATALOADER.NUM_WORKERS", workers)  # fmt: skip
    loader = build_train_loader(cfg)
    with caplog.at_level(logging.WARNING):
        batches = take(loader, 10)
    assert {s["image_id"] for b in batches for s in b} == set(range(10)) - {2}
    (message,) = warnings(caplog)
    assert "000000002.png" in message and "Unreadable so far: 1 of 10" in message


def test_a_corrupt_caption_under_either_policy(cfg, tmp_path, caplog):
    write_shards(
        tmp_path / "pairs", 10, caption_of=lambda n: b"\xff\xfe" if n == 7 else b"pair %d" % n
    )
    with pytest.raises(OVDError, match=r"00001\.tar/000000007\.txt is not UTF-8 text"):
        build_train_loader(only(cfg.clone(), "pairs"))
    with caplog.at_level(logging.WARNING):
        loader = build_train_loader(only(cfg, "pairs", "INPUT.PAIRS.DAMAGED_SHARDS", "skip"))
    (message,) = warnings(caplog)
    assert "0 of 2 shards and 1 captions of the others, 9 pairs remain" in message
    assert "000000007.txt" in message
    assert captions(take(loader, 10)) == {f"pair {n}" for n in range(10) if n != 7}


# ---- a pair whose caption has no noun phrase


@pytest.fixture
def without_noun(cfg, tmp_path):
    write_shards(tmp_path / "pairs", 10, caption_of=lambda n: b"of  the" if n < 2 else b"a mug")
    return cfg


def test_kept_with_the_caption_alone(without_noun, caplog):
    with caplog.at_level(logging.WARNING):
        batches = take(build_train_loader(only(without_noun, "pairs")), 10)
    concepts = {tuple(sample["concepts"]) for batch in batches for sample in batch}
    assert concepts == {("of the",), ("a mug", "mug")} and not warnings(caplog)


@pytest.mark.parametrize("workers", [0, 2])
def test_left_out_counted_and_named(without_noun, caplog, workers):
    """MAX_CORRUPT_FRACTION is 0: nothing is corrupt."""
    cfg = only(without_noun, "pairs", "INPUT.PAIRS.WITHOUT_NOUN_PHRASE", "skip",
               "DATALOADER.NUM_WORKERS", workers)  # fmt: skip
    loader = build_train_loader(cfg)
    with caplog.at_level(logging.WARNING):
        batches = take(loader, 10)
    assert all(len(batch) == BATCHES["pairs"] for batch in batches)
    assert captions(batches) == {"a mug"}
    assert {s["image_id"] for b in batches for s in b} == set(range(2, 10))
    assert not any("left_out" in key for b in batches for s in b for key in s)
    first, second = warnings(caplog)
    assert "its caption 'of the' has no noun phrase" in first and "1 of 10 images" in first
    assert "2 of 10 images" in second
    assert {n for n in range(10) if f"{n:09d}.png" in first + second} == {0, 1}


@pytest.mark.parametrize("workers", [0, 2])
def test_refused_with_the_file(without_noun, workers):
    cfg = only(without_noun, "pairs", "INPUT.PAIRS.WITHOUT_NOUN_PHRASE", "refuse",
               "DATALOADER.NUM_WORKERS", workers)  # fmt: skip
    with pytest.raises(OVDError) as caught:
        take(build_train_loader(cfg), 10)
    sentence = str(caught.value)
    assert sentence.startswith("Source 'pairs' of DATASETS.SOURCES: ")
    assert re.search(r"Cannot use the pair .*/00000\.tar/00000000[01]\.png: its caption", sentence)
    assert "WITHOUT_NOUN_PHRASE skip" in sentence and "\n" not in sentence


def test_when_most_pairs_are_left_out_the_others_are_found(cfg, tmp_path, caplog):
    write_shards(tmp_path / "pairs", 60, caption_of=lambda n: b"a mug" if n == 50 else b"of the")
    pairs = ["DATASETS.TRAIN", [f"pairs:{tmp_path}/pairs/{{00000..00011}}.tar"]]
    cfg = only(cfg, "pairs", *pairs, "INPUT.PAIRS.WITHOUT_NOUN_PHRASE", "skip")
    loader = build_train_loader(cfg)
    with caplog.at_level(logging.WARNING):
        assert captions(take(loader, 3)) == {"a mug"}
    counts = [int(re.search(r"(\d+) of 60", message)[1]) for message in warnings(caplog)]
    assert counts == [1, 2, 3, 4, 5, 10]  # then at 100: the log is not flooded
    assert len(loader.loaders["pairs"]._left_out) == 59


def test_when_all_are_left_out_one_sentence_says_so(cfg, tmp_path):
    write_shards(tmp_path / "pairs", 10, caption_of=lambda n: b"of the")
    cfg = only(cfg, "pairs", "INPUT.PAIRS.WITHOUT_NOUN_PHRASE", "skip")
    with pytest.raises(OVDError, match="1000 images in a row were left out") as caught:
        take(build_train_loader(cfg), 1)
    assert "no noun phrase" in str(caught.value) and "\n" not in str(caught.value)


def test_a_corrupt_image_behind_one_left_out_is_counted_as_corrupt(spoilt, tmp_path, caplog):
    path = tmp_path / "pairs" / "00001.tar"
    path.write_bytes(path.read_bytes().replace(b"a red square", b"of of of the"))
    cfg = only(spoilt, "pairs", "INPUT.PAIRS.WITHOUT_NOUN_PHRASE", "skip",
               "DATALOADER.MAX_CORRUPT_FRACTION", 0.1)  # fmt: skip
    loader = build_train_loader(cfg)
    take(loader, 12)
    (state,) = loader.state_dict()["sources"].values()
    assert [name[-13:] for name in state["unreadable"]] == ["000000002.png"]


# ---- images without boxes


@pytest.mark.parametrize(("name", "count"), [("detection", 8), ("grounding", 6)])
def test_an_image_without_boxes_trains_or_is_left_out(cfg, name, count):
    batches = {}
    for leave_out in (False, True):
        key = ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", leave_out]
        batches[leave_out] = take(build_train_loader(only(cfg, name, *key)), 12)
    seen = {key: {s["image_id"] for b in batch for s in b} for key, batch in batches.items()}
    assert seen == {False: set(range(1, count + 1)), True: set(range(1, count))}
    for sample in itertools.chain(*batches[False]):
        assert bool(sample["instances"]["gt_boxes"][1]) == (sample["image_id"] != count)
