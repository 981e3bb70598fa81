"""DetCLIP as a whole: the losses of its three kinds of data, against the formulas written out."""

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes
from plain_detclip import plain_loss_of_pairs, plain_losses_of_boxes
from small_detclip import (
    CAPTION,
    boxes_of,
    detclip_config,
    in_double,
    no_boxes,
    pair,
    sample,
    small_detclip,
)

from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary
from ovd_d2.language.concept_prompts import labelled_dictionary
from ovd_d2.modeling import DetCLIP
from ovd_d2.structures import TokenSpans

BOX_LOSSES = {"loss_alignment", "loss_box_reg", "loss_centerness"}
NAMES = ("Cat", "red_mug", "owl", "zebra crossing")
VOCABULARY = Vocabulary(
    NAMES, definitions=("a feline.", "", "a bird", ""), is_novel=(False, False, True, False)
)
TEXTS = {"cat": "cat, a feline", "red mug": "red mug", "zebra crossing": "zebra crossing"}


def double_boxes(size=(64, 96), **fields):
    rows = boxes_of(size, **fields)
    rows.gt_boxes = Boxes(rows.gt_boxes.tensor.double())
    return rows


def training(monkeypatch, vocabulary=VOCABULARY, **keys):
    """A model in double and in training mode."""
    in_double(monkeypatch)
    model = small_detclip(**keys).double().train()
    model.set_vocabulary(vocabulary)
    model.prompts.dictionary = labelled_dictionary(vocabulary)  # as if built with it
    return model


def assert_equal_with_gradients(model, found, wanted, exact=1e-7):
    """The losses, and the gradients of every parameter by a weighted sum of them."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=exact, atol=0, msg=name)
    factors = {name: 1.0 + place for place, name in enumerate(sorted(wanted))}
    parameters = dict(model.named_parameters())
    gradients = [
        torch.autograd.grad(
            sum(factors[name] * value for name, value in losses.items()),
            list(parameters.values()), allow_unused=True,
        )
        for losses in (found, wanted)
    ]  # fmt: skip
    for name, one, other in zip(parameters, *gradients):
        assert one is not None, name
        other = torch.zeros_like(one) if other is None else other
        size = max(other.abs().max().item(), 1e-3)
        torch.testing.assert_close(one, other, rtol=exact, atol=exact * size, msg=name)


def detection_batch():
    return [
        sample(seed=1, instances=double_boxes(gt_classes=[0, 3])),
        sample(seed=2, instances=no_boxes()),
        sample(64, 64, seed=3, instances=double_boxes((64, 64), gt_classes=[1, 1])),
    ]


def test_losses_of_classes(monkeypatch):
    model, batch = training(monkeypatch), detection_batch()
    names = [["cat", "zebra crossing"], [], ["red mug", "red mug"]]
    wanted = plain_losses_of_boxes(model, batch, names, TEXTS)
    assert set(wanted) == BOX_LOSSES
    assert_equal_with_gradients(model, model(batch), wanted)


@pytest.mark.parametrize("keys", [
    {"DEFORMABLE": False, "NORMALIZE_REGIONS": True, "LOGIT_SCALE_INIT": 20.0},
    {"LOSS_WEIGHTS": [0.5, 4.0, 3.0]},
    {"ENRICH": False},
])  # fmt: skip
def test_losses_of_classes_with_other_keys(monkeypatch, keys):
    model, batch = training(monkeypatch, **keys), detection_batch()
    names = [["cat", "zebra crossing"], [], ["red mug", "red mug"]]
    texts = {**TEXTS, "cat": "cat"} if "ENRICH" in keys else TEXTS
    wanted = plain_losses_of_boxes(model, batch, names, texts)
    factors = (0.5, 2.0, 3.0) if "LOSS_WEIGHTS" in keys else (1, 1, 1)
    wanted = {name: factor * loss for factor, (name, loss) in zip(factors, wanted.items())}
    assert_equal_with_gradients(model, model(batch), wanted)


def test_a_novel_class_is_a_concept_only_where_it_has_a_box(monkeypatch):
    model = training(monkeypatch)
    batch = [sample(seed=1, instances=double_boxes(gt_classes=[2, 0]))]
    texts = {**TEXTS, "owl": "owl, a bird"}
    wanted = plain_losses_of_boxes(model, batch, [["owl", "cat"]], texts)
    assert_equal_with_gradients(model, model(batch), wanted)


def test_negatives_of_an_image_are_as_many_as_asked_for(monkeypatch):
    """No negative of its own, but those of the other image."""
    model = training(monkeypatch, CONCEPTS_DETECTION=0)
    batch = [sample(seed=1, instances=double_boxes(gt_classes=[0, 0])),
             sample(seed=2, instances=double_boxes(gt_classes=[3, 3]))]  # fmt: skip
    texts = {name: TEXTS[name] for name in ("cat", "zebra crossing")}
    names = [["cat", "cat"], ["zebra crossing", "zebra crossing"]]
    assert_equal_with_gradients(
        model, model(batch), plain_losses_of_boxes(model, batch, names, texts)
    )


def grounding_batch():
    """The mug of the first image has no box; "A Cat" and "a cat" are one concept, and so are the
    phrase and the class "red mug"."""
    other = TokenSpans("A Cat and a_cat, a tall tree", (((0, 5),), ((10, 15),), ((17, 28),)))
    return [
        sample(seed=1, instances=double_boxes(gt_phrases=[0, 0]), caption=CAPTION),
        sample(seed=2, instances=double_boxes(gt_phrases=[2, 1]), caption=other),
        sample(seed=3, instances=no_boxes(field="gt_phrases"), caption=CAPTION),
    ]


@pytest.mark.parametrize("localize", [False, True])
def test_losses_of_phrases(monkeypatch, localize):
    model = training(monkeypatch, LOCALIZE_GROUNDING=localize)
    batch = grounding_batch()
    texts = {**TEXTS, "a cat": "a cat", "a tall tree": "a tall tree"}
    names = [["cat", "cat"], ["a tall tree", "a cat"], []]
    # What a caption says without a box: "a cat" is said with the phrase "cat", "cat" with "a cat".
    hidden = [{"red mug", "a cat"}, {"cat"}, {"cat", "a cat", "red mug"}]
    wanted = plain_losses_of_boxes(model, batch, names, texts, hidden)
    if not localize:
        wanted = {"loss_alignment": wanted["loss_alignment"]}
    assert_equal_with_gradients(model, model(batch), wanted)


def test_a_phrase_without_a_box_takes_no_part_for_its_image(monkeypatch):
    """Whatever the mug of the first image is, the loss is the same; the second image's is not."""
    model = training(monkeypatch)
    losses = []
    for word in ("mug", "owl", "hat"):
        caption = TokenSpans(f"a cat and a {word}", (((2, 5),), ((12, 15),)))
        batch = [sample(seed=1, instances=double_boxes(gt_phrases=[0, 0]), caption=caption)]
        losses.append(model(batch)["loss_alignment"].item())
        second = sample(seed=2, instances=double_boxes(gt_phrases=[0, 0]), caption=CAPTION)
        losses.append(model([*batch, second])["loss_alignment"].item())
    assert losses[0] == pytest.approx(losses[2], rel=1e-12)
    assert losses[0] == pytest.approx(losses[4], rel=1e-12)
    assert len(set(losses[1::2])) == 3


PAIRS = [
    ("A cat on a red_mug", "a cat", "a red mug"),
    ("an owl",),
    ("a cat on a red mug.", "a red mug", "a mug", "a red mug"),
    ("two hats", "hats"),
]
PAIR_TEXTS = [
    ["a cat on a red mug", "a cat", "a red mug"],
    ["an owl"],
    ["a cat on a red mug", "a red mug", "a mug"],
    ["two hats", "hats"],
]


@pytest.mark.parametrize(
    ("keys", "plain"),
    [
        ({}, {}),
        ({"REGIONS": 12, "REGION_SCORE": "own_text"}, {"regions": 12, "score": "own_text"}),
        ({"REGIONS": 7, "MATCH": "softmax", "MATCH_TEMPERATURE": 0.4, "PAIR_LOSS_WEIGHT": 3.0},
         {"regions": 7, "match": "softmax", "temperature": 0.4, "weight": 3.0}),
        ({"REGIONS": 9, "MATCH": "largest", "REGION_SCORE": "centerness"},
         {"regions": 9, "match": "largest", "score": "centerness"}),
        ({"DIRECTION": "image_to_text", "LABEL_SMOOTHING": 0.0, "REGIONS": 15},
         {"direction": "image_to_text", "smoothing": 0.0, "regions": 15}),
        ({"DIRECTION": "both", "PAIR_TEMPERATURE": 0.07, "REGIONS": 15},
         {"direction": "both", "tau": 0.07, "regions": 15}),
    ],
)  # fmt: skip
def test_loss_of_pairs(monkeypatch, keys, plain):
    model = training(monkeypatch, **keys)
    sizes = [(64, 96), (64, 64), (40, 96), (64, 96)]
    batch = [pair(*concepts, height=size[0], width=size[1], seed=seed)
             for seed, (concepts, size) in enumerate(zip(PAIRS, sizes))]  # fmt: skip
    wanted = {"loss_word_region": plain_loss_of_pairs(model, PAIR_TEXTS, batch, **plain)}
    assert_equal_with_gradients(model, model(batch), wanted)


def test_one_pair_alone_teaches_nothing_and_breaks_nothing():
    model = small_detclip().train()
    losses = model([pair("a cat", "cat")])
    assert losses["loss_word_region"].item() == 0
    losses["loss_word_region"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def mixed_batch():
    return [
        pair("a cat", seed=4),
        *detection_batch(),
        *grounding_batch(),
        pair("a tree", "tree", seed=5),
    ]


def test_kinds_mixed_in_a_batch_are_the_sum_of_each(monkeypatch):
    """Each kind is padded for itself, so its losses are those it has alone."""
    model, batch = training(monkeypatch), mixed_batch()
    parts = [model(part) for part in (batch[1:4], batch[4:7], [batch[0], batch[7]])]
    wanted = {}
    for losses in parts:
        for name, value in losses.items():
            wanted[name] = wanted.get(name, 0) + value
    assert_equal_with_gradients(model, model(batch), wanted, exact=1e-12)


@pytest.mark.parametrize("keys", [
    {},
    {"REGION_SCORE": "iou", "NORMALIZE_REGIONS": True, "DIRECTION": "both"},
    {"REGION_SCORE": "class_score", "DEFORMABLE": False, "LOCALIZE_GROUNDING": True},
    {"TEXT_TOWER": "locked:minilm", "MATCH": "softmax"},
    {"CONCEPTS_GROUNDING": 0, "CONCEPTS_DETECTION": 0, "MATCH": "largest"},
])  # fmt: skip
def test_every_parameter_has_a_gradient_for_every_kind(keys):
    """So DistributedDataParallel need not look for unused ones."""
    model = small_detclip(**keys).train()
    model.set_vocabulary(VOCABULARY)
    nothing = TokenSpans("nothing", ())
    batches = {
        "classes": [sample(instances=boxes_of(gt_classes=[0, 3]))],
        "one without boxes": [sample(instances=boxes_of(gt_classes=[0, 3])),
                              sample(instances=no_boxes())],
        "no box": [sample(instances=no_boxes())],
        "phrases": [sample(instances=boxes_of(gt_phrases=[0, 1]), caption=CAPTION)],
        "no box of a phrase": [sample(instances=no_boxes(field="gt_phrases"), caption=CAPTION)],
        "no phrase": [sample(instances=no_boxes(field="gt_phrases"), caption=nothing)],
        "pairs": [pair("a cat", "cat"), pair("a hat", seed=2)],
        "one pair": [pair("a cat")],
        "equal pairs": [pair("a cat"), pair("A Cat", seed=2)],
    }  # fmt: skip
    for kind, batch in batches.items():
        model.zero_grad()
        losses = model(batch)
        assert all(value.isfinite() for value in losses.values()), kind
        sum(losses.values()).backward()
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == [], kind
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad), kind


def test_images_without_boxes_alone_train_too():
    model = small_detclip().train()
    losses = model([sample(instances=no_boxes())])
    assert set(losses) == BOX_LOSSES and losses["loss_alignment"] > 0
    assert losses["loss_box_reg"] == losses["loss_centerness"] == 0


def test_the_quality_output_learns(monkeypatch):
    """What a table of the paper compares: an output for objects, or for the overlap of boxes."""
    for score in ("class_score", "iou"):
        model = small_detclip(REGION_SCORE=score).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        values = []
        for _ in range(8):
            losses = model([sample(seed=1, instances=boxes_of(gt_classes=[0, 2]))])
            assert set(losses) == BOX_LOSSES | {"loss_quality"}
            values.append(losses["loss_quality"].item())
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        assert values[-1] < values[0], score
        assert set(model([pair("a cat"), pair("a hat")])) == {"loss_word_region"}


def test_equal_names_are_never_each_others_negatives(monkeypatch):
    """Classes of two data sets that are spelled differently, phrases equal to classes."""
    model = training(monkeypatch, Vocabulary(("red_mug", "Red mug", "cat")))
    losses = []
    for classes in ([0, 2], [1, 2]):
        losses.append(model([sample(instances=double_boxes(gt_classes=classes))]))
    assert losses[0] == losses[1]
    names, texts = [["red mug", "cat"]], {"red mug": "red mug", "cat": "cat"}
    batch = [sample(instances=double_boxes(gt_classes=[0, 2]))]
    wanted = plain_losses_of_boxes(model, batch, names, texts)
    assert_equal_with_gradients(model, losses[0], wanted)
    both = [sample(seed=s, instances=double_boxes(gt_classes=c))
            for s, c in ((1, [0, 2]), (2, [1, 2]))]  # fmt: skip
    wanted = plain_losses_of_boxes(model, both, names * 2, texts)
    assert_equal_with_gradients(model, model(both), wanted)


def test_a_word_of_the_caption_is_no_negative_of_its_image(monkeypatch):
    """The dictionary has "cat" and "red mug"; the phrase is "a cat"."""
    model = training(monkeypatch, Vocabulary(("cat", "red mug", "owl")))
    caption = TokenSpans("a cat beside a red mug", (((0, 5),),))
    batch = [sample(instances=double_boxes(gt_phrases=[0, 0]), caption=caption)]
    texts = {"a cat": "a cat", "owl": "owl"}
    wanted = plain_losses_of_boxes(model, batch, [["a cat", "a cat"]], texts)
    assert_equal_with_gradients(model, model(batch), {"loss_alignment": wanted["loss_alignment"]})


def test_what_a_caption_says_is_no_negative_of_its_image_from_another(monkeypatch):
    """ "owl" and "tree" are concepts of the second image: the first one's caption says "tree"."""
    model = training(monkeypatch, Vocabulary(("cat",)))
    first = TokenSpans("a cat below a tall tree", (((2, 5),),))
    second = TokenSpans("owl, tree", (((0, 3),), ((5, 9),)))
    batch = [
        sample(seed=1, instances=double_boxes(gt_phrases=[0, 0]), caption=first),
        sample(seed=2, instances=double_boxes(gt_phrases=[0, 1]), caption=second),
    ]
    texts = {name: name for name in ("cat", "owl", "tree")}
    names, hidden = [["cat", "cat"], ["owl", "tree"]], [{"tree"}, set()]
    wanted = plain_losses_of_boxes(model, batch, names, texts, hidden)
    assert_equal_with_gradients(model, model(batch), {"loss_alignment": wanted["loss_alignment"]})


def test_classes_that_are_all_novel_train(monkeypatch):
    """None is known to be absent, so those of the boxes are the only concepts."""
    model = training(monkeypatch, Vocabulary(("cat", "owl"), is_novel=(True, True)))
    batch = [sample(seed=1, instances=double_boxes(gt_classes=[1, 1])),
             sample(seed=2, instances=no_boxes())]  # fmt: skip
    wanted = plain_losses_of_boxes(model, batch, [["owl", "owl"], []], {"owl": "owl"})
    assert_equal_with_gradients(model, model(batch), wanted)


def test_pairs_of_equal_captions_are_no_negatives(monkeypatch):
    """With no other pair there is nothing to tell apart."""
    model = training(monkeypatch)
    batch = [pair("a red_mug", "mug", seed=1), pair("A red  mug", seed=2)]
    assert model(batch)["loss_word_region"].item() == 0
    batch[1]["concepts"] = ["a mug"]
    assert model(batch)["loss_word_region"].item() > 0


def test_a_sample_of_no_kind_is_one_sentence():
    model = small_detclip().train()
    with pytest.raises(
        OVDError, match=r"The sample of x.jpg has neither .*PAIRS.NOUN_PHRASES auto"
    ):
        model([{**sample(), "file_name": "x.jpg", "caption": "a cat"}])
    with pytest.raises(OVDError, match="class number 3"):
        model([sample(instances=boxes_of(gt_classes=[0, 3]))])
    with pytest.raises(OVDError, match="set INPUT.MAPPER GroundingMapper"):
        model([sample(instances=boxes_of(gt_classes=[0, 1]), caption=CAPTION)])
    dots = TokenSpans("a cat ...", (((2, 5),), ((6, 9),)))
    with pytest.raises(OVDError, match=r"The caption of x.jpg: class name '...' has no letters"):
        model([{**sample(instances=boxes_of(gt_phrases=[0, 0]), caption=dots),
                "file_name": "x.jpg"}])  # fmt: skip


def test_a_step_on_boxes_learns_them():
    model = small_detclip().train()
    data = [sample(instances=boxes_of(gt_classes=[0, 1]))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(110):
        optimizer.zero_grad()
        sum(model(data).values()).backward()
        optimizer.step()
    found = model.eval()([sample()])[0]["instances"]
    for class_number, box in zip((0, 1), boxes_of().gt_boxes):
        best = found[found.pred_classes == class_number][0]
        assert (best.pred_boxes.tensor[0] - box).abs().max() < 8, best
        assert best.scores > 0.3, best


def test_steps_on_pairs_tell_them_apart():
    """Captions are told apart by images, and the regression branch moves although there is no
    box."""
    model = small_detclip(PAIR_LOSS_WEIGHT=1.0).train()
    before = [p.detach().clone() for p in model.head.regression.parameters()]
    data = [pair("a cat", seed=1), pair("a hat", "hat", seed=2), pair("an owl", seed=3)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(model(data)["loss_word_region"])
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
    after = list(model.head.regression.parameters())
    assert all(not torch.equal(one, other) for one, other in zip(before, after))


def test_boxes_of_a_permuted_data_set_train_the_right_class(monkeypatch):
    dataset, order = "detclip_permuted", [2, 0, 1]
    names = ["cat", "red mug", "zebra crossing"]
    MetadataCatalog.get(dataset).thing_classes = [names[place] for place in order]
    try:
        cfg = detclip_config()
        plain = small_detclip().train()
        cfg.DATASETS.TRAIN = (dataset,)
        model = DetCLIP(cfg).train()
        model.load_state_dict(plain.state_dict())
        wanted = plain([sample(instances=boxes_of(gt_classes=[0, 1]))])
        numbers = [order.index(0), order.index(1)]
        found = model([sample(instances=boxes_of(gt_classes=numbers))])
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value)
        unmapped = model([sample(instances=boxes_of(gt_classes=[0, 1]))])
        assert not torch.isclose(unmapped["loss_alignment"], wanted["loss_alignment"])
    finally:
        MetadataCatalog.remove(dataset)
