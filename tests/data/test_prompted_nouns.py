"""Prompted nouns, and the augmentations of whole pairs."""

import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from PIL import Image

from ovd_d2.config import add_ovd_config
from ovd_d2.data.mappers.image_text_pairs import ImageTextPairMapper
from ovd_d2.data.mappers.pair_augmentation import NoiseErasing, auto_augmentation
from ovd_d2.data.mappers.prompted_nouns import PromptedNouns
from ovd_d2.data.random_state import seeded
from ovd_d2.errors import OVDError
from ovd_d2.language.prompts import PROMPT_SETS
from ovd_d2.structures import TokenSpans

GOLDEN = Path(__file__).parents[1] / "golden/groupvit/text_processing.json"
TEXTS = json.loads(GOLDEN.read_text())
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", TEXTS["word_augmentation"])
def test_texts_are_the_public_codes_seed_by_seed(case, seed):
    wanted = TEXTS["word_augmentation"][case]
    prompted = PromptedNouns(3, "stop-words")
    prompted._find = lambda caption: wanted["candidate_words"]
    np.random.seed(seed)  # noqa: NPY002 (the generator of mappers)
    found = prompted({"file_name": "x.png", "caption": wanted["caption"]})
    assert [wanted["caption"], *found] == wanted[f"texts_with_numpy_seed_{seed}"]


def test_templates_are_all_drawn_and_a_noun_once():
    prompted = PromptedNouns(2, "stop-words")
    assert len(PROMPT_SETS["imagenet80"]) == TEXTS["templates"]["full"] == 80
    assert list(PROMPT_SETS["imagenet7"]) == TEXTS["templates"]["subset"]
    assert set(PROMPT_SETS["imagenet7"]) < set(PROMPT_SETS["imagenet80"])
    seen = set()
    for seed in range(400):
        with seeded(seed):
            first, second = prompted({"caption": "a {cat} and a dog"})
        assert ("cat" in first) != ("cat" in second) and ("dog" in first) != ("dog" in second)
        seen |= {text.replace("cat", "{}").replace("dog", "{}") for text in (first, second)}
    assert len(seen) == 80
    tagged = PromptedNouns(1, "stop-words")({"caption": TokenSpans("of the", ())})
    assert tagged == ["of the"]


def test_a_record_without_a_caption_is_named():
    with pytest.raises(OVDError, match="x.png has no caption .*PROMPTED_NOUNS 0"):
        PromptedNouns(1, "stop-words")({"file_name": "x.png"})


def configured(record, *opts, is_train=True):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.merge_from_list(["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", MEAN, "MODEL.PIXEL_STD", STD,
                         "INPUT.PAIRS.IMAGE_SIZE", 32, *opts])  # fmt: skip
    mapper = ImageTextPairMapper(cfg, is_train=is_train)
    with seeded(3):
        return pickle.loads(pickle.dumps(mapper))(record)


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "x.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return {"file_name": str(path), "caption": "a cat on a mat"}


def test_the_mapper_has_them_in_training_where_they_are_asked_for(record):
    asked = ("INPUT.PAIRS.PROMPTED_NOUNS", 3, "INPUT.PAIRS.NOUNS_BY", "stop-words")
    sample = configured(record, *asked)
    first, second, third = sample["prompted_nouns"]
    assert {"cat", "mat"} == {word for word in ("cat", "mat") if word in first + second}
    assert third == sample["caption"] == "a cat on a mat"
    for other in (configured(record), configured(record, *asked, is_train=False)):
        assert "prompted_nouns" not in other


def test_augmentations_change_the_image_by_the_seed_alone(record):
    plain = configured(record)["image"]
    for opts in (
        ("INPUT.PAIRS.AUTO_AUGMENT", "rand-m9-mstd0.5-inc1"),
        ("INPUT.PAIRS.RANDOM_ERASING", 1.0),
    ):
        first, second = (configured(record, *opts)["image"] for _ in range(2))
        assert torch.equal(first, second) and not torch.equal(first, plain)
        assert first.dtype == torch.uint8 and first.shape == plain.shape == (3, 32, 32)
        tested = configured(record, *opts, is_train=False)["image"]
        assert torch.equal(tested, configured(record, is_train=False)["image"])


def test_erased_pixels_are_standard_noise_once_normalised():
    image = torch.full((3, 200, 200), 7, dtype=torch.uint8)
    torch.manual_seed(0)
    erase = NoiseErasing(1.0, MEAN, STD)
    areas, noise = [], []
    for _ in range(50):
        found = erase(image)
        rows = (found != 7).any(dim=0)
        areas.append(rows.float().mean().item())
        inside = found[:, rows].float()
        noise.append((inside - torch.tensor(MEAN)[:, None]) / torch.tensor(STD)[:, None])
    assert min(areas) > 0.015 and max(areas) < 0.34
    noise = torch.cat(noise, dim=1)
    assert noise.mean(dim=1).abs().max() < 0.06  # clipped to 0..255
    assert noise.std(dim=1).sub(1).abs().max() < 0.1
    assert torch.equal(NoiseErasing(0.0, MEAN, STD)(image), image)
    every = torch.arange(256, dtype=torch.uint8).expand(3, 8, 256)
    assert torch.equal(NoiseErasing(0.0, MEAN, STD)(every), every)


def test_policies_are_timms():
    from timm.data.auto_augment import rand_augment_transform

    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    policy = "rand-m9-mstd0.5-inc1"
    ours = auto_augmentation(policy, MEAN)
    theirs = rand_augment_transform(policy, {"img_mean": (124, 116, 104)})
    for seed in range(5):
        found = []
        for augment in (ours, theirs):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002 (timm draws from it)
            found.append(np.asarray(augment(image)))
        assert np.array_equal(*found)
    with pytest.raises(OVDError, match="AUTO_AUGMENT is 'rond-m9'"):
        auto_augmentation("rond-m9", MEAN)
