"""Several sources in one training: their order, their streams, resuming, and what is refused."""

import itertools
import logging
from fractions import Fraction

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from hypothesis import given, settings
from hypothesis import strategies as st
from label_files import write_labels
from PIL import Image

from ovd_d2.config import add_ovd_config
from ovd_d2.data.build import ResumableLoader, build_train_loader
from ovd_d2.data.mixing import (
    MixedLoader,
    read_sources,
    source_order,
    training_datasets,
)
from ovd_d2.errors import OVDError

BOXES = "mixing_boxes"
COUNT = 7
SMALL = ["INPUT.MIN_SIZE_TRAIN", (20, 28), "SOLVER.IMS_PER_BATCH", 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixing")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        Image.fromarray(rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)).save(root / f"{i}.png")
    write_labels(root / "labels", 9, seed=1)
    return root


def records(folder):
    box = {"bbox": [2, 2, 20, 20], "bbox_mode": 0, "category_id": 0}
    return [
        {"file_name": str(folder / f"{i}.png"), "image_id": 100 + i, "width": 48, "height": 32,
         "annotations": [box]}
        for i in range(COUNT)
    ]  # fmt: skip


@pytest.fixture
def cfg(folder):
    DatasetCatalog.register(BOXES, lambda: records(folder))
    MetadataCatalog.get(BOXES).thing_classes = ["green", "red", "blue"]
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.DATASETS.TRAIN = (BOXES,)
    cfg.INPUT.MIN_SIZE_TRAIN = (24, 32, 40)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SEED = 5
    cfg.DATASETS.SOURCES = [
        {"NAME": "boxes", "RATIO": 1},
        {"NAME": "labels", "RATIO": 2, "OPTS": ["DATASETS.TRAIN", labels(folder), *SMALL]},
    ]
    yield cfg
    DatasetCatalog.remove(BOXES)
    MetadataCatalog.remove(BOXES)


def labels(folder):
    return [f"labels:{folder}/labels/labels.json"]


def together(cfg):
    cfg.DATASETS.MIXING = "together"
    for source in cfg.DATASETS.SOURCES:
        source.pop("RATIO", None)
    return cfg


def take(loader, count):
    return [
        [(sample["image_id"], tuple(sample["image"].shape), int(sample["image"].sum()))
         for sample in batch]
        for batch in itertools.islice(loader, count)
    ]  # fmt: skip


def kind_of(batch):
    kinds = {"boxes" if image_id >= 100 else "labels" for image_id, *_ in batch}
    return kinds.pop() if len(kinds) == 1 else "both"


# ---- the order


RATIOS = st.lists(
    st.integers(1, 50).map(Fraction)
    | st.floats(0.01, 100).map(lambda x: Fraction(str(x)))
    | st.fractions(Fraction(1, 100), 100, max_denominator=100),
    min_size=1, max_size=7,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(ratios=RATIOS)
def test_every_prefix_has_the_right_shares(ratios):
    total, counts = sum(ratios), [0] * len(ratios)
    for n, chosen in enumerate(itertools.islice(source_order(ratios), 150), start=1):
        counts[chosen] += 1
        for count, ratio in zip(counts, ratios):
            assert abs(count - n * ratio / total) < 1


@settings(max_examples=100, deadline=None)
@given(ratios=RATIOS, start=st.integers(0, 300))
def test_the_order_can_be_entered_anywhere(ratios, start):
    whole = list(itertools.islice(source_order(ratios), start + 20))
    assert list(itertools.islice(source_order(ratios, start), 20)) == whole[start:]


def order_of(*ratios, count=10):
    return list(itertools.islice(source_order([Fraction(r) for r in ratios]), count))


def test_orders():
    assert order_of(1, 1) == [0, 1] * 5
    assert order_of(2, 2) == order_of(1, 1)
    assert order_of(3) == [0] * 10
    one_to_four = order_of(1, 4, count=50)
    assert all(one_to_four[i : i + 5].count(0) == 1 for i in range(46))
    assert order_of("0.1", "0.4") == one_to_four[:10]
    far = 10**9  # whole turns are skipped
    assert next(source_order([Fraction(1), Fraction(4)], 5 * far)) == one_to_four[0]


# ---- the stream


def test_alternating_batches(cfg):
    batches = take(build_train_loader(cfg), 30)
    kinds = [kind_of(batch) for batch in batches]
    assert kinds == [["boxes", "labels"][i] for i in order_of(1, 2, count=30)]
    assert {len(batch) for batch, kind in zip(batches, kinds) if kind == "boxes"} == {2}
    assert {len(batch) for batch, kind in zip(batches, kinds) if kind == "labels"} == {4}
    sides = {kind: {min(shape[1:]) for batch, k in zip(batches, kinds) if k == kind
                    for _, shape, _ in batch} for kind in ("boxes", "labels")}  # fmt: skip
    assert sides == {"boxes": {24, 32, 40}, "labels": {20, 28}}


def test_together_every_batch_has_all(cfg):
    for batch in take(build_train_loader(together(cfg)), 8):
        assert [image_id >= 100 for image_id, *_ in batch] == [True] * 2 + [False] * 4


@pytest.mark.parametrize("mode", ["alternate", "together"])
def test_a_source_s_stream_is_its_own(cfg, mode):
    """The same samples of a source, however the sources are mixed."""

    def of_boxes(cfg):
        samples = [s for batch in take(build_train_loader(cfg), 24) for s in batch]
        return [s for s in samples if s[0] >= 100][:14]

    first = of_boxes(cfg)
    cfg.DATASETS.SOURCES[1]["RATIO"] = 1
    assert of_boxes(together(cfg) if mode == "together" else cfg) == first


def test_streams_of_equal_sources_differ_and_seeds_count(cfg):
    cfg.DATASETS.SOURCES = [{"NAME": "a"}, {"NAME": "b"}]
    batches = take(build_train_loader(cfg), 20)
    assert batches[0::2] != batches[1::2]
    assert [b[0][0] for b in batches[0::2]] != [b[0][0] for b in batches[1::2]]
    assert take(build_train_loader(cfg), 20) == batches
    cfg.SEED = 6
    assert take(build_train_loader(cfg), 20) != batches
    cfg.SEED = -1
    one = build_train_loader(cfg)
    drawn = take(one, 8)
    assert drawn != take(build_train_loader(cfg), 8)
    again = build_train_loader(cfg)
    state = one.state_dict()
    places = {name: {**s, "batches": 0} for name, s in state["sources"].items()}
    again.load_state_dict({**state, "batches": 0, "sources": places})
    assert take(again, 8) == drawn


@pytest.mark.parametrize("mode", ["alternate", "together"])
def test_resumed_after_any_step(cfg, mode):
    if mode == "together":
        together(cfg)
    whole = take(build_train_loader(cfg), 14)
    running = build_train_loader(cfg)
    stream = iter(running)
    for step in range(12):
        resumed = build_train_loader(cfg)
        resumed.load_state_dict(running.state_dict())
        assert resumed.state_dict() == running.state_dict()
        assert take(resumed, 2) == whole[step : step + 2], step
        next(stream)


@pytest.mark.parametrize("mode", ["alternate", "together"])
def test_workers_change_nothing_and_prefetching_does_not_count(cfg, mode):
    if mode == "together":
        together(cfg)
    alone = take(build_train_loader(cfg), 9)
    cfg.DATALOADER.NUM_WORKERS = 1
    cfg.DATASETS.SOURCES[1]["OPTS"] += ["DATALOADER.NUM_WORKERS", 2]
    first = build_train_loader(cfg)
    assert [loader._num_workers for loader in first.loaders.values()] == [1, 2]
    assert take(first, 5) == alone[:5]
    state = first.state_dict()
    assert state["batches"] == 5
    handed_out = [s["batches"] for s in state["sources"].values()]
    assert handed_out == ([5, 5] if mode == "together" else [2, 3])
    cfg.DATALOADER.NUM_WORKERS = 0
    second = build_train_loader(cfg)
    second.load_state_dict(state)
    assert take(second, 4) == alone[5:]


@pytest.mark.parametrize("mode", ["alternate", "together"])
def test_all_processes_have_the_same_source(cfg, monkeypatch, mode):
    if mode == "together":
        together(cfg)
    alone = take(build_train_loader(cfg), 10)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "all_gather", lambda data: [data, data])
    parts = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(take(build_train_loader(cfg), 10))
    for whole, first, second in zip(alone, *parts):
        assert kind_of(first) == kind_of(second) == kind_of(whole)
        assert len(first) == len(second) == len(whole) // 2
        assert sorted(first + second) == sorted(whole)  # and no image twice


def test_a_state_is_plain(cfg, tmp_path):
    loader = build_train_loader(cfg)
    take(loader, 5)
    torch.save(loader.state_dict(), tmp_path / "state.pth")
    assert torch.load(tmp_path / "state.pth", weights_only=True) == loader.state_dict()


# ---- resumed with another config


def resumed_with(cfg, state, caplog):
    loader = build_train_loader(cfg)
    with caplog.at_level(logging.WARNING):
        loader.load_state_dict(state)
    return loader


@pytest.fixture
def state(cfg):
    loader = build_train_loader(cfg)
    take(loader, 9)
    return loader.state_dict()


def test_the_same_config_is_no_warning(cfg, state, caplog):
    resumed_with(cfg, state, caplog)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_other_ratios(cfg, state, caplog):
    cfg.DATASETS.SOURCES[1]["RATIO"] = 4
    loader = resumed_with(cfg, state, caplog)
    assert "ratios of DATASETS.SOURCES = {'boxes': '1', 'labels': '2'}, now it is" in caplog.text
    assert loader.state_dict()["sources"] == state["sources"]
    kinds = [kind_of(batch) for batch in take(loader, 10)]
    assert kinds == [["boxes", "labels"][i] for i in order_of(1, 4, count=19)[9:]]


def test_another_mode(cfg, state, caplog):
    loader = resumed_with(together(cfg), state, caplog)
    assert "DATASETS.MIXING = alternate, now it is together" in caplog.text
    assert loader.state_dict()["sources"] == state["sources"]
    assert len(take(loader, 1)[0]) == 6


def test_other_sources(cfg, state, caplog):
    cfg.DATASETS.SOURCES = [{"NAME": "new"}, {**cfg.DATASETS.SOURCES[1], "RATIO": 2}]
    loader = resumed_with(cfg, state, caplog)
    assert "{'new': '1', 'labels': '2'}" in caplog.text
    after = loader.state_dict()["sources"]
    assert after["labels"] == state["sources"]["labels"] and after["new"]["batches"] == 0
    assert len(take(loader, 4)) == 4


def test_sources_in_another_order(cfg, state, caplog):
    cfg.DATASETS.SOURCES = cfg.DATASETS.SOURCES[::-1]
    loader = resumed_with(cfg, state, caplog)
    assert "not exactly as it would have" in caplog.text
    assert loader.state_dict()["sources"]["boxes"] == state["sources"]["boxes"]


def test_from_one_data_set_to_sources_and_back(cfg, state, caplog):
    sources = cfg.DATASETS.SOURCES
    cfg.DATASETS.SOURCES = []
    plain = resumed_with(cfg, state, caplog)
    assert isinstance(plain, ResumableLoader) and plain.state_dict()["batches"] == 0
    assert "made with DATASETS.SOURCES, now there are none" in caplog.text
    take(plain, 3)
    cfg.DATASETS.SOURCES = sources
    mixed = resumed_with(cfg, plain.state_dict(), caplog)
    assert isinstance(mixed, MixedLoader) and mixed.state_dict()["batches"] == 0
    assert "made without DATASETS.SOURCES" in caplog.text


# ---- sources of the config


def test_sources_of_a_config(cfg, folder):
    cfg.MODEL.OPEN_VOCAB.VOCABULARY = ""
    boxes, labelled = read_sources(cfg)
    assert (boxes.name, labelled.name) == ("boxes", "labels")
    assert boxes.cfg.DATASETS.TRAIN == (BOXES,) and boxes.cfg.SOLVER.IMS_PER_BATCH == 2
    assert tuple(labels(folder)) == labelled.cfg.DATASETS.TRAIN
    assert labelled.cfg.INPUT.MIN_SIZE_TRAIN == (20, 28)
    assert labelled.cfg.SOLVER.IMS_PER_BATCH == 4
    assert f"dataset:{BOXES}" == labelled.cfg.MODEL.OPEN_VOCAB.VOCABULARY
    assert labelled.cfg.DATASETS.SOURCES == [] and labelled.cfg.is_frozen()
    assert cfg.SOLVER.IMS_PER_BATCH == 2 and len(cfg.DATASETS.SOURCES) == 2
    assert training_datasets(cfg) == [BOXES, *labels(folder)]
    cfg.DATASETS.SOURCES = []
    assert read_sources(cfg) == [] and training_datasets(cfg) == [BOXES]


def test_a_config_with_sources_survives_its_file(cfg, tmp_path):
    from ovd_d2.config_file import load_config

    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = load_config(str(tmp_path / "config.yaml"))
    assert [s.name for s in read_sources(again)] == ["boxes", "labels"]
    first, second = (read_sources(one)[1].cfg for one in (cfg, again))
    assert first.DATASETS == second.DATASETS and first.INPUT == second.INPUT
    assert first.SOLVER.IMS_PER_BATCH == second.SOLVER.IMS_PER_BATCH == 4
    words = ["DATASETS.SOURCES", "[{'NAME': 'a', 'OPTS': ['INPUT.MIN_SIZE_TRAIN', '(8,)']}]"]
    assert read_sources(load_config("", words))[0].cfg.INPUT.MIN_SIZE_TRAIN == (8,)


def opts(*words):
    return [{"NAME": "a", "OPTS": list(words)}]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["boxes"], "number 1 is 'boxes', not a mapping of NAME, RATIO, OPTS"),
        ([{"NAME": "a"}, {"RATIO": 2}], "number 2 has no NAME"),
        ([{"NAME": ""}], "number 1 has no NAME"),
        ([{"NAME": "a"}, {"NAME": "a"}], "two sources with the NAME 'a'"),
        ([{"NAME": "a", "RATE": 2}], "number 1 has the key 'RATE'"),
        ([{"NAME": "a", "RATIO": 0}], "Source 'a' of DATASETS.SOURCES: RATIO is 0; it must be"),
        ([{"NAME": "a", "RATIO": -1.5}], "RATIO is -1.5"),
        ([{"NAME": "a", "RATIO": float("nan")}], "RATIO is nan"),
        ([{"NAME": "a", "RATIO": float("inf")}], "RATIO is inf"),
        ([{"NAME": "a", "RATIO": "2"}], "RATIO is '2'"),
        ([{"NAME": "a", "RATIO": True}], "RATIO is True"),
        ([{"NAME": "a", "OPTS": {"SEED": 1}}], r"OPTS is \{'SEED': 1\}; it must be a list"),
        (opts(3, 4), r"OPTS is \[3, 4\]; it must be a list"),
        (opts("DATASETS.TRAIN"), "there are 1 entries, the last one being 'DATASETS.TRAIN'"),
        (opts("DATASETS.TRIAN", "('a',)"), r"no config key .*TRIAN"),
        (opts("INPUT.MIN_SIZE_TRAIN", "sixty"), "Source 'a' .*OPTS"),
        (opts("MODEL.MASK_ON", True), "OPTS sets MODEL.MASK_ON, which is not of the data alone"),
        (opts("SOLVER.BASE_LR", 0.1), "OPTS sets SOLVER.BASE_LR"),
        (opts("SEED", 1), "OPTS sets SEED"),
        (opts("INPUT.FORMAT", "RGB"), "OPTS sets INPUT.FORMAT"),
        (opts("DATASETS.TEST", "('a',)"), "OPTS sets DATASETS.TEST"),
        (opts("DATASETS.SOURCES", []), "OPTS sets DATASETS.SOURCES"),
    ],
)
def test_wrong_sources_are_one_sentence(cfg, sources, message):
    cfg.DATASETS.SOURCES = sources
    with pytest.raises(OVDError, match=message) as caught:
        build_train_loader(cfg)
    assert "\n" not in str(caught.value) and "DATASETS.SOURCES" in str(caught.value)


def test_wrong_modes(cfg):
    cfg.DATASETS.MIXING = "together"
    with pytest.raises(OVDError, match="Source 'boxes' of DATASETS.SOURCES: it has a RATIO"):
        read_sources(cfg)
    cfg.DATASETS.MIXING = "shuffle"
    with pytest.raises(OVDError, match="MIXING is 'shuffle'; it must be 'alternate' or 'together'"):
        read_sources(cfg)


def test_batch_sizes_that_would_not_be_scaled(cfg):
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    with pytest.raises(OVDError, match="REFERENCE_WORLD_SIZE"):
        read_sources(cfg)


def test_what_is_wrong_with_a_source_s_data_names_it(cfg, tmp_path):
    cfg.DATASETS.SOURCES[1]["OPTS"][1] = ["mixing_boxen"]
    with pytest.raises(OVDError, match="Source 'labels' of .*'mixing_boxen'.*did you mean"):
        build_train_loader(cfg)
    cfg.DATASETS.SOURCES[1]["OPTS"][1] = []
    with pytest.raises(OVDError, match="Source 'labels' of .*DATASETS.TRAIN is empty"):
        build_train_loader(cfg)
    other = write_labels(tmp_path, names=("green", "red", "teal"))
    cfg.DATASETS.SOURCES[1]["OPTS"][1] = [f"labels:{other}"]
    cfg.MODEL.ROI_HEADS.NAME = "OpenVocabROIHeads"
    with pytest.raises(OVDError, match="Source 'labels' of .*'teal', which the model's vocabulary"):
        build_train_loader(cfg)


def test_classes_of_a_source_are_those_of_the_whole(cfg, tmp_path):
    other = write_labels(tmp_path, names=("blue", "green", "red"))
    cfg.DATASETS.SOURCES[1]["OPTS"][1] = [f"labels:{other}"]
    cfg.MODEL.ROI_HEADS.NAME = "OpenVocabROIHeads"
    seen = {}
    for batch in itertools.islice(build_train_loader(cfg), 9):
        for sample in batch:
            seen[sample["image_id"]] = sample["instances"].gt_classes.tolist()
    assert {k: v for k, v in seen.items() if k < 100} == {
        1: [2],
        2: [0],
        3: [1],
        4: [2],
        5: [0],
        6: [1],
    }
    assert all(v == [0] for k, v in seen.items() if k >= 100)


def test_unreadable_images_are_counted_per_source(cfg, folder, tmp_path, caplog):
    path = write_labels(tmp_path, 9)
    (tmp_path / "pictures/4.png").write_text("no image")
    cfg.DATASETS.SOURCES[1]["OPTS"][1] = [f"labels:{path}"]
    cfg.DATASETS.SOURCES[1]["OPTS"] += ["DATALOADER.MAX_CORRUPT_FRACTION", 0.2]
    loader = build_train_loader(cfg)
    with caplog.at_level(logging.WARNING):
        assert all(sample[0] != 5 for batch in take(loader, 20) for sample in batch)
    assert "Unreadable so far: 1 of 9 images" in caplog.text
    unreadable = [s["unreadable"] for s in loader.state_dict()["sources"].values()]
    assert unreadable == [[], [str(tmp_path / "pictures/4.png")]]
    cfg.DATASETS.SOURCES[1]["OPTS"][-1] = 0.0
    with pytest.raises(
        OVDError, match="Source 'labels' of .*1 of 9 training images cannot be read"
    ):
        take(build_train_loader(cfg), 20)
