"""LSeg on hard inputs: label sets of any size and order, sizes, windows, maps with holes."""

import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from torch.nn import functional as F

from ovd_d2.errors import OVDError
from ovd_d2.language import RandomEmbeddings
from ovd_d2.modeling import get_vocabulary, is_open_vocabulary, set_vocabulary

sys.path.append(str(Path(__file__).parent))

from largest_tensor import LargestTensor
from small_lseg import NAMES, sample, small_lseg

WINDOWS = ("MODEL.LSEG.TEST.WINDOW", 64, "MODEL.LSEG.TEST.STRIDE", 48,
           "MODEL.LSEG.TEST.BASE_SIZE", 80, "MODEL.LSEG.TEST.SCALES", [0.5, 1.25],
           "MODEL.LSEG.TEST.FLIP", True)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return small_lseg()


@pytest.fixture(scope="module")
def windowed():
    return small_lseg(*WINDOWS)


def scores(model, *samples):
    return [one["sem_seg"] for one in model.eval()(list(samples))]


@pytest.mark.parametrize("kind", ["", "bottleneck", "depthwise"])
def test_label_order_changes_nothing_but_the_order(kind):
    options = ("MODEL.LSEG.REGULARISER.KIND", kind, "MODEL.LSEG.REGULARISER.DEPTH", 3)
    model = small_lseg(*options)
    first = scores(model, sample())[0]
    order = [3, 0, 4, 2, 1]
    set_vocabulary(model, [NAMES[k] for k in order])
    assert torch.allclose(scores(model, sample())[0], first[order], atol=1e-5)


def test_a_label_set_of_one_and_back(model):
    before = scores(model, sample())[0]
    set_vocabulary(model, "red mug")
    assert torch.allclose(scores(model, sample())[0], before[2:3], atol=1e-5)
    set_vocabulary(model, list(NAMES))
    assert torch.equal(scores(model, sample())[0], before)
    assert is_open_vocabulary(model) and get_vocabulary(model).names == NAMES


def test_3000_labels_hold_nothing_larger_than_the_result():
    model = small_lseg(names=[f"thing {i}" for i in range(3000)])
    with LargestTensor() as largest:
        found = scores(model, sample((40, 56)))[0]
    assert found.shape == (3000, 40, 56)
    assert largest.elements == found.numel()


def test_more_labels_than_channels_by_windows_hold_nothing_larger_either(windowed):
    few = [f"thing {i}" for i in range(30)]  # fewer than the 32 of an embedding
    many = [f"thing {i}" for i in range(3000)]
    set_vocabulary(windowed, few)
    expected = scores(windowed, sample((40, 56)))[0]
    set_vocabulary(windowed, many)
    with LargestTensor() as largest:
        found = scores(windowed, sample((40, 56)))[0]
    set_vocabulary(windowed, list(NAMES))
    assert largest.elements == found.numel() == 3000 * 40 * 56
    torch.testing.assert_close(found[:30], expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("size", [(33, 50), (1, 70), (64, 64), (95, 31)])
@pytest.mark.parametrize("which", ["model", "windowed"])
def test_sizes_and_frames(request, which, size):
    model = request.getfixturevalue(which)
    found = scores(model, sample(size, height=21, width=84))[0]
    assert found.shape == (5, 21, 84) and found.isfinite().all() and found.dtype == torch.float32
    one = {"image": sample(size)["image"]}
    assert scores(model, one)[0].shape == (5, *size)


@pytest.mark.parametrize("which", ["model", "windowed"])
def test_scores_of_an_image_do_not_depend_on_its_batch(request, which):
    model = request.getfixturevalue(which)
    samples = [sample((40, 90), 1), sample((70, 33), 2), sample((40, 90), 3)]
    together = scores(model, *samples)
    for one, expected in zip(samples, together):
        assert torch.allclose(scores(model, one)[0], expected, atol=1e-4)


def test_windows_make_a_difference_and_one_window_is_the_padded_image(model, windowed):
    one = sample((64, 64))
    assert not torch.allclose(scores(model, one)[0], scores(windowed, one)[0], atol=0.1)
    plain = small_lseg("MODEL.LSEG.TEST.WINDOW", 64, "MODEL.LSEG.TEST.BASE_SIZE", 64,
                       "MODEL.LSEG.TEST.STRIDE", 64)  # fmt: skip
    assert torch.allclose(scores(plain, one)[0], scores(model, one)[0], atol=1e-4)


def test_the_loss_counts_the_labelled_pixels_of_the_image_alone():
    model = small_lseg().eval()  # batch norms in evaluation mode: padding is all that differs
    one = sample((50, 70))
    with torch.no_grad():
        loss = model.losses([one])["loss_sem_seg"]
        logits = model._window_maps(one["image"][None].float(), model.head)
    assert logits.shape[-2:] == (50, 70)
    expected = F.cross_entropy(logits, one["sem_seg"][None], ignore_index=255)
    assert torch.allclose(loss, expected, atol=1e-5)
    padded = model.losses([one, sample((90, 40), 1)])["loss_sem_seg"]
    assert padded.isfinite()


def test_nothing_labelled_is_zero_and_trains_every_weight():
    model = small_lseg().train()
    one = sample()
    one["sem_seg"].fill_(255)
    loss = model([one])["loss_sem_seg"]
    loss.backward()
    assert loss == 0
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(grad is not None and not grad.any() for grad in grads)


def test_training_learns_a_map():
    model = small_lseg("MODEL.TIMM.WEIGHTS", "packaged:efficientnet-lite0").train()
    one = sample()
    one["sem_seg"] = torch.arange(96).div(20, rounding_mode="floor").expand(64, 96).contiguous()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = model([one, one])["loss_sem_seg"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_class_numbers_of_a_data_set_become_those_of_the_vocabulary():
    turned = list(reversed(NAMES))
    MetadataCatalog.get("turned_maps").set(thing_classes=turned)
    model = small_lseg().eval()
    model.target_checks.class_numbers.train_dataset = "turned_maps"
    one, other = sample(), sample()
    labelled = one["sem_seg"] != 255
    other["sem_seg"] = torch.where(labelled, 4 - one["sem_seg"], 255)
    with torch.no_grad():
        found = model.losses([other])["loss_sem_seg"]
        model.target_checks.class_numbers.train_dataset = ""
        assert torch.allclose(found, model.losses([one])["loss_sem_seg"])
        assert not torch.allclose(found, model.losses([other])["loss_sem_seg"])


def test_class_names_of_an_image_in_the_place_of_the_vocabulary(model):
    pair = ("others", "wall")
    whole = scores(model, sample())[0]
    found = scores(model, sample(class_names=pair))[0]
    assert torch.allclose(found, whole[[0, 4]], atol=1e-5)
    unknown = scores(model, sample(class_names=("others", "kettle")))[0]
    assert torch.allclose(unknown[0], whole[0], atol=1e-4)
    empty = small_lseg(names=None)
    empty.class_embedder = RandomEmbeddings(32)
    assert torch.allclose(scores(empty, sample(class_names=pair))[0], found, atol=1e-4)
    losses = model.train()([sample(classes=2, class_names=p) for p in (pair, ("others", "cat"))])
    assert losses["loss_sem_seg"] > 0


def test_autocast_trains_in_half_precision(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.train()([sample(), sample(seed=1)])["loss_sem_seg"]
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_words_are_no_weights_and_another_encoder_is_refused(model):
    assert not any("class_embeddings" in key for key in model.state_dict())
    other = small_lseg(names=None)
    state = other.state_dict()
    state["head.encoder_id_bytes"][:4] = torch.tensor(list(b"clip"), dtype=torch.uint8)
    with pytest.raises(OVDError, match='trained with text encoder "clip"'):
        model.load_state_dict(state)


def test_a_vocabulary_that_cannot_be_had_changes_nothing(model):
    before = scores(model, sample())[0]
    with pytest.raises(OVDError, match=r"\(2, 16\).*\(K, 32\)"):
        set_vocabulary(model, "cat, dog", RandomEmbeddings(16))
    assert torch.equal(scores(model, sample())[0], before)


def losses_of(model, *samples):
    return model.train()(list(samples))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([sample(classes=9)], "class number 8, but the model's vocabulary has 5 classes"),
        ([{**sample(), "sem_seg": torch.full((64, 96), -1)}], "class number -1"),
        ([{**sample(), "sem_seg": torch.zeros(64, 90, dtype=torch.long)}], r"sem_seg of \(64, 90"),
        ([{"image": sample()["image"], "file_name": "a.jpg"}], r"a\.jpg.*has no sem_seg"),
        ([sample(class_names=("others", "cat")), sample()], "class_names and without"),
        ([sample(class_names=("others", "cat"))], "class number 4, but class_names of an image"),
    ],
)
def test_bad_maps_are_named(model, samples, message):
    with pytest.raises(OVDError, match=message):
        losses_of(model, *samples)


def test_an_ignore_value_that_is_a_class_is_refused():
    model = small_lseg("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 3)
    with pytest.raises(OVDError, match="IGNORE_VALUE 3 is the number of a class"):
        losses_of(model, sample())


def test_no_classes_yet():
    model = small_lseg(names=None)
    for run in (lambda: losses_of(model, sample()), lambda: scores(model, sample())):
        with pytest.raises(OVDError, match="no classes yet"):
            run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.LSEG.IN_FEATURES", ["stride4", "p6"]), "IN_FEATURES names 'p6'"),
        (("MODEL.LSEG.IN_FEATURES", ["stride4", "stride16"]), r"strides \[4, 16\]"),
        (("MODEL.LSEG.TEST.WINDOW", 64, "MODEL.LSEG.TEST.STRIDE", 65), "leave gaps"),
        (("MODEL.LSEG.REGULARISER.KIND", "mean"), r"MODEL\.LSEG\.REGULARISER"),
    ],
)
def test_parts_that_do_not_fit_are_named(options, message):
    with pytest.raises(OVDError, match=message):
        small_lseg(*options)
