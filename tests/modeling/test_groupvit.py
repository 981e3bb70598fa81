"""GroupViT as a meta-architecture: losses, vocabulary, sizes, processes, errors."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from groupvit_names import close
from small_detclip import in_double
from small_groupvit import small_groupvit
from torch import nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes

from ovd_d2 import add_ovd_config
from ovd_d2.data.model_kind import has_open_vocabulary
from ovd_d2.errors import OVDError
from ovd_d2.language import RandomEmbeddings, TextEmbeddings, Vocabulary
from ovd_d2.modeling import get_vocabulary, set_vocabulary
from ovd_d2.modeling.group_segmentation import GroupSegmentation

NAMES = ("cat", "background", "dog", "red mug")


class Letters(nn.Module):
    """A text tower by counts of letters."""

    dim = 8

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(self.dim))

    def forward(self, captions):
        rows = torch.zeros(len(captions), self.dim)
        for row, text in zip(rows, captions):
            for letter in text:
                row[ord(letter) % self.dim] += 1
        return rows.to(self.weight) * self.weight


def model_of_letters(**keywords):
    return small_groupvit(weights=False, tower=Letters(), **keywords)


def picture(tall=32, wide=32, seed=0, **fields):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, tall, wide), generator=generator, dtype=torch.uint8)
    return {"image": image, **fields}


def pairs(count=4):
    captions = ["a cat", "a red mug", "the sky", "two dogs"]
    return [
        picture(seed=i, caption=captions[i], prompted_nouns=[f"art of {i}.", captions[i]])
        for i in range(count)
    ]


def step(model, batch):
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    return {name: value.detach() for name, value in losses.items()}


@pytest.mark.parametrize("form", ["soft_targets", "log_sum", ""])
def test_it_learns_and_every_parameter_has_a_gradient(form):
    model = model_of_letters(multi_label_loss=form).train()
    assert hasattr(model, "multi_label_logit_scale") == bool(form)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    totals = []
    for _ in range(8):
        optimizer.zero_grad()
        losses = step(model, pairs())
        assert list(losses) == ["loss_contrastive", *(["loss_multi_label"] if form else [])]
        assert [n for n, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
        totals.append(sum(losses.values()).item())
    assert min(totals[4:]) < totals[0]


def test_a_scale_above_the_largest_gets_no_gradient_and_counts_as_it():
    found = []
    for value in (math.log(100), 9.0):
        model = model_of_letters().train()
        model.image_encoder.eval()  # no noise
        model.logit_scale.data.fill_(value)
        found.append(step(model, pairs())["loss_contrastive"])
    assert model.logit_scale.item() == 9.0 and model.logit_scale.grad == 0
    close(found[0], found[1], 1e-6)
    assert model.multi_label_logit_scale.grad != 0


def test_prompted_nouns_are_needed_where_their_loss_is_on():
    model = model_of_letters().train()
    for wrong in (
        [{k: v for k, v in s.items() if k != "prompted_nouns"} for s in pairs()],
        [*pairs(2), {**pairs(3)[2], "prompted_nouns": ["one"]}],
    ):
        with pytest.raises(OVDError, match=r"INPUT\.PAIRS\.PROMPTED_NOUNS 3"), EventStorage():
            model(wrong)
    with pytest.raises(OVDError, match="at least 2 for each process"), EventStorage():
        model(pairs(1))


def test_background_takes_what_no_class_reaches():
    model = small_groupvit(
        tower=None, segmentation=GroupSegmentation(window=32, stride=16, background_threshold=1.0)
    )
    model.class_embedder = RandomEmbeddings(16)
    model.set_vocabulary(NAMES)
    sample = picture(32, 32, height=40, width=50)
    found = model([sample])[0]["sem_seg"]
    assert found.shape == (4, 40, 50) and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1
    background = found[1].round().bool()
    assert background.any() and not background.all()  # the best segment reaches its own score
    model.segmentation.background_threshold = 0.0
    assert not model([sample])[0]["sem_seg"][1].any()
    model.set_vocabulary([name for name in NAMES if name != "background"])
    without = model([sample])[0]["sem_seg"]
    close(without, found[[0, 2, 3]], 1e-6)
    model.set_vocabulary(["dog", "BACKGROUND", "red mug", "cat"])
    other = model([sample])[0]["sem_seg"]
    close(other[[3, 0, 2]], found[[0, 2, 3]], 1e-5)
    with pytest.raises(OVDError, match="background alone"):
        model.set_vocabulary("background")
    assert get_vocabulary(model).names[0] == "dog"


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 3), (33, 47), (64, 30), (100, 70)])
def test_any_size(height, width):
    model = model_of_letters()
    model.set_vocabulary(["cat", "dog"])
    sample = picture(height, width, height=2 * height, width=width)
    found = model([sample])[0]["sem_seg"]
    assert found.shape == (2, 2 * height, width) and found.isfinite().all()


@pytest.mark.parametrize("count", [1, 600])
def test_one_class_and_many(count, monkeypatch):
    """Many are painted in parts, which changes nothing."""
    model = model_of_letters()
    model.set_vocabulary([f"thing {k}" for k in range(count)])
    sample = picture(80, 64)
    found = model([sample])[0]["sem_seg"]
    assert found.shape == (count, 80, 64)
    monkeypatch.setattr("ovd_d2.modeling.group_segmentation._CLASSES_AT_ONCE", 7)
    monkeypatch.setattr("ovd_d2.modeling.group_segmentation._WINDOWS_AT_ONCE", 1)
    close(model([sample])[0]["sem_seg"], found, 1e-5)
    assert (found > 0).flatten(1).any(dim=1).sum() <= 2 * 5  # of two windows


def test_an_image_to_be_named_gets_logits():
    model = model_of_letters()
    images = [picture(40, 60, label=1, caption="a cat"), picture(32, 32)]
    outputs = model(images)
    assert [set(output) for output in outputs] == [
        {"image_embedding", "text_embedding"}, {"image_embedding"}
    ]  # fmt: skip
    model.set_vocabulary(["cat", "dog", "mug"])
    named, segmented = model(images)
    assert set(named) == {"image_embedding", "text_embedding", "logits"}
    assert set(segmented) == {"sem_seg"}
    assert torch.equal(named["image_embedding"], outputs[0]["image_embedding"])
    assert named["image_embedding"].norm().item() == pytest.approx(1, abs=1e-5)
    rows = normalize(
        model.text.encode([f"a photo of a {n}." for n in ("cat", "dog", "mug")]), dim=1
    )
    wanted = model.logit_scale.exp() * (rows @ named["image_embedding"])
    close(named["logits"], wanted, 1e-5)
    set_vocabulary(model, None)
    assert "logits" not in model(images)[0] and get_vocabulary(model) is None


def test_the_centre_of_a_resized_image_is_named():
    model = model_of_letters()
    seen = []
    model.image_encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    white = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    white[:, 8:56, 8:56] = 0
    model([{"image": white}])
    object.__setattr__(model.preprocessing, "crop_share", 0.75)
    model([{"image": white}])
    assert seen[0].unique().numel() > 3 and seen[0].shape == seen[1].shape
    assert seen[1][0, 0, 2:-2, 2:-2].unique().numel() == 1


def test_classes_are_encoded_once_by_the_weights_of_the_time():
    model = model_of_letters(vocabulary="cat, dog")
    asked = []
    tower = model.text.tower
    tower.register_forward_hook(lambda _, given, __: asked.extend(given[0]))
    first = model([picture()])[0]["sem_seg"]
    model([picture(seed=1)])
    assert asked == ["a photo of a cat.", "a photo of a dog."]
    state = {k: torch.randn_like(v) if "text.tower" in k else v
             for k, v in model.state_dict().items()}  # fmt: skip
    assert not any("class" in key for key in state)
    model.load_state_dict(state)
    second = model([picture()])[0]["sem_seg"]
    assert len(asked) == 4 and not torch.equal(first, second)
    for change in (lambda: model.train().eval(), model.float):
        change()
        model([picture()])
    assert len(asked) == 8


def test_prompts_and_synonyms_are_averaged_before_the_norm(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a {}\nthe {}\n")
    model = model_of_letters(prompts=str(file), use_synonyms=True)
    classes = Vocabulary(("cat", "dog"), synonyms=(("kitty",), ()))
    found = model.class_embedder.embed(classes)
    cat = model.text.encode(["a cat", "the cat", "a kitty", "the kitty"]).mean(dim=0)
    dog = model.text.encode(["a dog", "the dog"]).mean(dim=0)
    close(found.embeddings, normalize(torch.stack([cat, dog]), dim=1), 1e-5)
    before = found.encoder_id
    model.text.tower.weight.data.mul_(2)
    assert model.class_embedder.encoder_id != before


def test_given_embeddings_and_wrong_ones():
    model = model_of_letters()
    rows = torch.randn(4, 16)
    set_vocabulary(model, NAMES, TextEmbeddings(rows, NAMES, "given"))
    kept, place = model._present_classes()
    assert place == 1 and torch.allclose(kept, normalize(rows[[0, 2, 3]], dim=1), atol=1e-6)
    with pytest.raises(OVDError, match="have 8 values, segments of this model have 16"):
        set_vocabulary(model, "cat", RandomEmbeddings(8))
    with pytest.raises(OVDError, match="no letters left"):
        model_of_letters().set_vocabulary(["cat", "._"])
    assert get_vocabulary(model).names == NAMES
    assert model([picture()])[0]["sem_seg"].shape[0] == 4


def with_fixed_norms():
    """Norms by their running statistics: those of a batch would be of each process's own."""
    model = model_of_letters(norm=nn.BatchNorm1d).double().train()
    model.preprocessing = lambda images, own=model.preprocessing: own(images).double()
    for part in (model.image_encoder, model.image_projector[1], model.text.projector[1]):
        part.eval()
    return model


def of_rank(rank):
    model = with_fixed_norms()
    losses = step(DistributedDataParallel(model), pairs()[2 * rank : 2 * rank + 2])
    return losses, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_equal_one(monkeypatch, tmp_path):
    in_double(monkeypatch)
    ranks = in_two_processes(of_rank, tmp_path)
    model = with_fixed_norms()
    losses = step(model, pairs())
    for name, value in losses.items():
        assert ranks[0][0][name] != ranks[1][0][name]
        close((ranks[0][0][name] + ranks[1][0][name]) / 2, value, 1e-9, name)
    for name, parameter in model.named_parameters():
        for _, gradients in ranks:
            torch.testing.assert_close(
                gradients[name], parameter.grad, rtol=1e-6, atol=1e-9, msg=name
            )


def config(**keys):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, cfg.INPUT.FORMAT = "GroupViT", "cpu", "RGB"
    small = {"IMAGE_SIZE": 32, "PATCH": 8, "WIDTH": 24, "HEADS": 3, "DEPTHS": [1, 1, 1],
             "GROUP_TOKENS": [6, 3, 0], "OUTPUT_GROUPS": [6, 3], "TEXT.WIDTH": 16,
             "TEXT.HEADS": 2, "TEXT.LAYERS": 1, "EMBED_DIM": 16, "PROJECTOR_HIDDEN": 9}  # fmt: skip
    for key, value in {**small, **keys}.items():
        of_all = key.startswith(("MODEL.", "INPUT."))
        cfg.merge_from_list([key if of_all else f"MODEL.GROUPVIT.{key}", value])
    return cfg


def test_the_config_builds_it():
    cfg = config(ASSIGNMENT_TEMPERATURE=0.5, COUNT_OFFSET=0.25, AVERAGE=False, WINDOW_TEST=48,
                 STRIDE_TEST=16, BACKGROUND_THRESH_TEST=0.35, TOP_CLASSES_TEST=2)  # fmt: skip
    assert has_open_vocabulary(cfg)
    model = build_model(cfg)
    part = model.image_encoder.stages[1].grouping.assignment
    assert (part.temperature, part.count_offset, part.average) == (0.5, 0.25, False)
    assert vars(model.segmentation) == {
        "window": 48, "stride": 16, "top_classes": 2, "background_threshold": 0.35
    }  # fmt: skip
    assert model.text.tower.dim == 16 and model.text.tower.text_projection is None
    assert isinstance(model.image_projector[1], nn.SyncBatchNorm)
    step(model.train(), pairs())
    assert all(p.grad is not None for p in model.parameters())
    model = build_model(config(**{"MODEL.OPEN_VOCAB.VOCABULARY": "cat, background"})).eval()
    assert model([picture(40, 50)])[0]["sem_seg"].shape == (2, 40, 50)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"INPUT.FORMAT": "BGR"}, "INPUT.FORMAT is BGR"),
        ({"STRIDE_TEST": 449}, "STRIDE_TEST is 449"),
        ({"LOGIT_SCALE_INIT": 101.0}, "LOGIT_SCALE_INIT is 101"),
        ({"MULTI_LABEL_LOSS": "mean"}, "MULTI_LABEL_LOSS is 'mean'"),
        ({"TEXT_TOWER": "bert"}, "MODEL.GROUPVIT.TEXT_TOWER is 'bert'"),
        ({"TEXT.WIDTH": 15}, "MODEL.GROUPVIT.TEXT.WIDTH 15"),
        ({"GROUP_TOKENS": [6, 3]}, "group_tokens"),
        ({"MODEL.OPEN_VOCAB.PROMPTS": "a photo"}, "neither a prompt set"),
    ],
)
def test_bad_parts_are_named(keys, message):
    with pytest.raises(OVDError, match=message):
        build_model(config(**keys))


def refusal(rank):
    try:
        build_model(config())
    except OVDError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_on_cpus_cannot_have_a_synchronised_norm(tmp_path):
    for message in in_two_processes(refusal, tmp_path):
        assert message.startswith("MODEL.GROUPVIT.PROJECTOR_NORM is SyncBN") and "BN." in message


def test_half_precision_trains_and_infers():
    model = model_of_letters().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = step(model, pairs())
        assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
        assert all(p.grad.isfinite().all() for p in model.parameters())
        model.eval().set_vocabulary(NAMES)
        found = model([picture(40, 50)])[0]["sem_seg"]
    assert found.dtype == torch.float32 and found.isfinite().all()
