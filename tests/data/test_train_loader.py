"""The training loader: its stream depends on seed and place alone, and it can go on anywhere."""

import itertools
import logging
import random

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import TrainingSampler
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ovd_d2.config import add_ovd_config
from ovd_d2.data import random_state
from ovd_d2.data.build import ResumableLoader, build_test_loader, build_train_loader
from ovd_d2.data.samplers import ResumableBatchSampler, aspect_ratio_groups
from ovd_d2.errors import OVDError

# ruff: noqa: NPY002 (Detectron2's augmentations draw from the global generator)

NAME = "train_loader_images"
COUNT = 15


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        shape = (32, 48, 3) if i % 3 else (48, 32, 3)
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(root / f"{i}.png")
    return root


def records(folder, count=COUNT):
    ret = []
    for i in range(count):
        width, height = (48, 32) if i % 3 else (32, 48)
        box = {"bbox": [2, 2, 20, 20], "bbox_mode": 0, "category_id": 0 if i else 1}
        ret.append({"file_name": str(folder / f"{i}.png"), "image_id": i, "width": width,
                    "height": height, "annotations": [box]})  # fmt: skip
    return ret


@pytest.fixture
def cfg(folder):
    register(lambda: records(folder))
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.INPUT.MIN_SIZE_TRAIN = (24, 32, 40)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SEED = 5
    yield cfg
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def register(function):
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)
    DatasetCatalog.register(NAME, function)
    MetadataCatalog.get(NAME).thing_classes = ["a", "b"]


def take(loader, count):
    return [
        [(sample["image_id"], tuple(sample["image"].shape), int(sample["image"].sum()))
         for sample in batch]
        for batch in itertools.islice(loader, count)
    ]  # fmt: skip


SAMPLERS = ["TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler",
            "WeightedTrainingSampler", "WeightedCategoryTrainingSampler"]  # fmt: skip


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("grouping", [True, False])
def test_goes_on_where_it_was(cfg, sampler, grouping):
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = [[NAME, 1.5]]
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    whole = take(build_train_loader(cfg), 24)
    first = build_train_loader(cfg)
    beginning = take(first, 11)
    second = build_train_loader(cfg)
    second.load_state_dict(first.state_dict())
    assert whole == beginning + take(second, 13)
    if grouping:
        shapes = [{sample[0] % 3 == 0 for sample in batch} for batch in whole]
        assert all(len(shape) == 1 for shape in shapes)
    if sampler == "RandomSubsetTrainingSampler":
        assert len({sample[0] for batch in whole for sample in batch}) == 7


def test_workers_change_nothing_and_prefetching_does_not_count(cfg):
    alone = take(build_train_loader(cfg), 12)
    cfg.DATALOADER.NUM_WORKERS = 2
    first = build_train_loader(cfg)
    assert alone[:7] == take(first, 7)
    assert first.state_dict()["batches"] == 7
    cfg.DATALOADER.NUM_WORKERS = 1
    second = build_train_loader(cfg)
    second.load_state_dict(first.state_dict())
    assert alone[7:] == take(second, 5)


def test_random_states_are_neither_used_nor_moved(cfg):
    before = take(build_train_loader(cfg), 5)
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    state = random_state.capture()
    assert take(build_train_loader(cfg), 5) == before
    after = random_state.capture()
    assert state["python"] == after["python"]
    assert torch.equal(state["numpy"][1], after["numpy"][1])
    assert state["numpy"][2:] == after["numpy"][2:]
    assert torch.equal(state["torch"], after["torch"])


def test_seeds(cfg):
    first = take(build_train_loader(cfg), 5)
    cfg.SEED = 6
    assert take(build_train_loader(cfg), 5) != first
    cfg.SEED = -1
    one, other = build_train_loader(cfg), build_train_loader(cfg)
    drawn = take(one, 8)
    assert drawn != take(other, 8)
    restored = build_train_loader(cfg)
    restored.load_state_dict({**one.state_dict(), "batches": 0})
    assert take(restored, 8) == drawn


def test_epochs_are_augmented_differently(cfg):
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SOLVER.IMS_PER_BATCH = 1
    seen = [batch[0] for batch in take(build_train_loader(cfg), 4 * COUNT)]
    of_image_4 = {sample for sample in seen if sample[0] == 4}
    assert len(of_image_4) > 1


@settings(max_examples=50, deadline=None)
@given(
    size=st.integers(1, 9), batch=st.integers(1, 4), world=st.integers(1, 3),
    skip=st.integers(0, 7), grouped=st.booleans(),
)  # fmt: skip
def test_batches_of_all_processes_are_the_global_batch(size, batch, world, skip, grouped):
    groups = np.arange(size) % 2 if grouped else None

    def batches(rank, world, per_process, skip=0):
        sampler = TrainingSampler(size, seed=1)
        sampler._rank, sampler._world_size = rank, world
        stream = ResumableBatchSampler(
            sampler, per_process, groups=groups, rank=rank, world_size=world, skip=skip
        )
        return list(itertools.islice(stream, 5))

    for rank in range(world):
        mine = batches(rank, world, batch, skip)
        assert mine == list(
            itertools.islice((b for b in _all(size, rank, world, batch, groups)), skip, skip + 5)
        )
        assert all(len(b) == batch for b in mine)
        assert all(position % world == rank for b in mine for position, _ in b)
        if grouped:
            assert all(len({groups[index] for _, index in b}) == 1 for b in mine)
    if not grouped:
        alone = batches(0, 1, batch * world)
        together = [sorted(sum(parts, [])) for parts in
                    zip(*(batches(rank, world, batch) for rank in range(world)))]  # fmt: skip
        assert [sorted(b) for b in alone] == together


def _all(size, rank, world, batch, groups):
    """A plain version: walk the permutations, collect per group."""
    generator = torch.Generator()
    generator.manual_seed(1)
    position, waiting = 0, {0: [], 1: []}
    while True:
        for index in torch.randperm(size, generator=generator).tolist():
            if position % world == rank:
                group = 0 if groups is None else int(groups[index])
                waiting[group].append((position, index))
                if len(waiting[group]) == batch:
                    yield waiting[group]
                    waiting[group] = []
            position += 1


def test_groups_are_detectron2s():
    sizes = [(2, 1), (1, 2), (1, 1)]
    made = aspect_ratio_groups([{"width": w, "height": h} for w, h in sizes] + [{}])
    assert made.tolist() == [0, 1, 1, 1]


@pytest.fixture
def spoilt(cfg, folder, tmp_path):
    """Image 3 is text, image 4 is missing."""
    (tmp_path / "3.png").write_text("no image")
    made = records(folder)
    made[3]["file_name"] = str(tmp_path / "3.png")
    made[4]["file_name"] = str(tmp_path / "4.png")
    register(lambda: made)
    return cfg


def test_unreadable_images_are_replaced_and_named(spoilt, caplog, tmp_path):
    spoilt.DATALOADER.MAX_CORRUPT_FRACTION = 0.2
    loader = build_train_loader(spoilt)
    with caplog.at_level(logging.WARNING):
        batches = take(loader, 20)
    ids = [sample[0] for batch in batches for sample in batch]
    assert len(ids) == 40
    assert not {3, 4} & set(ids)
    named = [r.getMessage() for r in caplog.records if "Skipped" in r.getMessage()]
    assert len(named) == 2  # each once
    assert any(f"{tmp_path / '3.png'}: UnidentifiedImageError" in m for m in named)
    assert any(f"{tmp_path / '4.png'}: there is no such file" in m for m in named)
    assert "2 of 15" in named[-1]
    assert loader.state_dict()["unreadable"] == [str(tmp_path / "3.png"), str(tmp_path / "4.png")]
    spoilt.DATALOADER.NUM_WORKERS = 2
    assert take(build_train_loader(spoilt), 20) == batches


def test_too_many_unreadable_images_stop_the_training(spoilt):
    spoilt.DATALOADER.MAX_CORRUPT_FRACTION = 0.1  # one of 15
    with pytest.raises(OVDError, match=r"2 of 15 training images .*MAX_CORRUPT_FRACTION"):
        take(build_train_loader(spoilt), 40)


@pytest.mark.parametrize("workers", [0, 1])
def test_no_readable_image_at_all(cfg, tmp_path, workers):
    register(lambda: records(tmp_path))
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.DATALOADER.MAX_CORRUPT_FRACTION = 1.0
    with pytest.raises(OVDError, match=r"10 images in a row .*\(there is no such file\)") as caught:
        take(build_train_loader(cfg), 1)
    assert "\n" not in str(caught.value)


def test_empty_datasets_are_refused(cfg, folder):
    register(list)
    with pytest.raises(OVDError, match=f"DATASETS.TRAIN {NAME} cannot be used.*empty"):
        build_train_loader(cfg)
    with pytest.raises(OVDError, match=f"DATASETS.TEST {NAME} cannot be used.*empty"):
        build_test_loader(cfg, NAME)
    register(lambda: [{**r, "annotations": []} for r in records(folder)])
    with pytest.raises(OVDError, match="No valid data"):
        build_train_loader(cfg)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert len(take(build_train_loader(cfg), 1)[0]) == 2


def test_missing_annotation_file_is_named(cfg, tmp_path):
    register((tmp_path / "gone.json").read_text)
    with pytest.raises(OVDError, match=r"needs the file .*gone\.json"):
        build_train_loader(cfg)


def test_a_category_outside_the_classes_is_refused(cfg, folder):
    made = records(folder)
    made[0]["annotations"][0]["category_id"] = 7
    register(lambda: made)
    with pytest.raises(OVDError, match="category_id=7"):
        build_train_loader(cfg)


def test_a_changed_batch_size_keeps_the_number_of_images(caplog):
    def loader(batch):
        return ResumableLoader(
            list(range(8)), lambda record: {"image_id": record},
            make_sampler=lambda seed: TrainingSampler(8, seed=seed),
            total_batch_size=batch, seed=1,
        )  # fmt: skip

    first = loader(2)
    list(itertools.islice(first, 6))
    second = loader(4)
    with caplog.at_level(logging.WARNING):
        second.load_state_dict(first.state_dict())
    assert "total_batch_size = 2, now it is 4" in caplog.text
    assert second.state_dict()["batches"] == 3


def test_seeded_gives_the_same_numbers_and_leaves_none():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    with random_state.seeded(1, 2):
        first = draw()
    outside = draw()
    with random_state.seeded(1, 2):
        assert draw() == first
    with random_state.seeded(1, 3):
        assert draw() != first
    assert outside != first
    with random_state.preserved():
        inside = draw()
    assert draw() == inside
