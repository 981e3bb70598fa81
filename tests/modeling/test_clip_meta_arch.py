"""CLIP as a meta-architecture: towers, gradients, temperature, processes, vocabulary."""

import copy
import json
import math
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ovd_d2 import add_ovd_config
from ovd_d2.encoders.image_text_model import ImagePreprocessing
from ovd_d2.encoders.text_towers import LockedTextTower
from ovd_d2.errors import OVDError
from ovd_d2.language import Vocabulary
from ovd_d2.modeling import CLIP, get_vocabulary, set_vocabulary

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "language"))


class LetterEncoder:
    """A ``TextEncoder`` without weights: counts of letters; remembers what it was asked."""

    def __init__(self, dim=8):
        self.encoder_id, self.dim, self.asked = "letters@000000000000", dim, []

    def encode(self, texts):
        self.asked += texts
        rows = torch.zeros(len(texts), self.dim)
        for row, text in zip(rows, texts):
            for letter in text:
                row[ord(letter) % self.dim] += 1
        return nn.functional.normalize(rows, dim=1)


def tiny_tower(dim=8):
    return nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.GELU(), nn.Flatten(), nn.Linear(64, dim))


def tiny_clip(dim=8, text_dim=8, **kwargs):
    torch.manual_seed(0)
    return CLIP(
        image_tower=tiny_tower(dim),
        text_tower=LockedTextTower(LetterEncoder(text_dim), dim),
        preprocessing=ImagePreprocessing(16),
        settings={"dim": dim},
        **kwargs,
    )


CAPTIONS = ["a cat", "a red mug", "the sky", "two dogs"]


def batch(count=4, size=(16, 16)):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)
    return [{"image": i, "caption": c} for i, c in zip(images, CAPTIONS)]


def step(model, data):
    with EventStorage():
        losses = model(data)
    losses["loss_contrastive"].backward()
    return losses["loss_contrastive"].item()


def config(**clip_keys):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "CLIP"
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.FORMAT = "RGB"
    tiny = {"IMAGE_SIZE": 32, "EMBED_DIM": 16, "TEXT.WIDTH": 16, "TEXT.HEADS": 2,
            "TEXT.LAYERS": 1, "VIT.PATCH": 16, "VIT.WIDTH": 64, "VIT.LAYERS": 1,
            "RESNET.LAYERS": [1, 1, 1, 1], "RESNET.WIDTH": 8, "TIMM.NAME": "resnet18"}  # fmt: skip
    for key, value in {**tiny, **clip_keys}.items():
        cfg.merge_from_list([f"MODEL.CLIP.{key}", value])
    return cfg


@pytest.mark.parametrize("image_tower", ["timm", "clip_vit", "clip_resnet"])
def test_every_image_tower_trains_and_infers(image_tower):
    torch.manual_seed(0)
    model = build_model(config(IMAGE_TOWER=image_tower))
    data = batch(4, (32, 32))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        losses.append(step(model, data))
        assert [n for n, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
    assert min(losses[1:]) < losses[0]
    model.eval()
    outputs = model([*batch(2, (32, 32)), {"image": torch.zeros(3, 20, 50, dtype=torch.uint8)}])
    for output in outputs:
        assert output["image_embedding"].shape == (16,)
        assert output["image_embedding"].norm().item() == pytest.approx(1, abs=1e-5)
    assert ["text_embedding" in o for o in outputs] == [True, True, False]
    features = model.image_tower.features(torch.zeros(2, 3, 32, 32))
    assert features.ndim == 2 and model.image_tower(torch.zeros(2, 3, 32, 32)).shape == (2, 16)


def test_trained_text_tower_is_openai_clips():
    """The same weights in OpenAI's own model give the same features, padding and all."""
    from clip import tokenize

    from ovd_d2.encoders.openai_clip import import_clip
    from ovd_d2.encoders.text_towers import OpenAITextTower

    torch.manual_seed(0)
    tower = OpenAITextTower(dim=12, width=16, heads=2, layers=2)
    reference = import_clip().model.CLIP(
        embed_dim=12, image_resolution=32, vision_layers=1, vision_width=64, vision_patch_size=16,
        context_length=77, vocab_size=49408, transformer_width=16, transformer_heads=2,
        transformer_layers=2,
    )  # fmt: skip
    missing, unexpected = reference.load_state_dict(tower.state_dict(), strict=False)
    assert unexpected == [] and all(k.startswith("visual.") or k == "logit_scale" for k in missing)
    expected = reference.encode_text(tokenize(CAPTIONS))
    torch.testing.assert_close(tower(CAPTIONS), expected, atol=1e-6, rtol=0)


def test_huggingface_text_tower_locked_and_trained(tmp_path):
    import tiny_clip_models

    folder = tmp_path / "bert"
    folder.mkdir()
    tiny_clip_models.save_hf_bert(folder)
    for kind in ("locked", "trained"):
        model = build_model(config(TEXT_TOWER=f"{kind}:hf:{folder}", IMAGE_TOWER="timm"))
        step(model, batch(4, (32, 32)))
        names = [n for n, p in model.named_parameters() if n.startswith("text_tower.")]
        assert all(p.grad is not None for p in model.parameters())
        assert any(n.startswith("text_tower.model.") for n in names) == (kind == "trained")


def test_locked_tower_gets_no_gradient_and_is_asked_once_per_caption():
    model = tiny_clip()
    encoder = model.text_tower.encoder
    encoder.weight = torch.ones(8, requires_grad=True)
    plain = encoder.encode
    encoder.encode = lambda texts: plain(texts) * encoder.weight.detach()
    assert list(model.text_tower.parameters()) == [] and model.text_tower.state_dict() == {}
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        step(model, batch())
    assert sorted(encoder.asked) == sorted(CAPTIONS)
    assert encoder.weight.grad is None
    assert before.keys() == model.state_dict().keys()
    assert all(p.grad is not None for p in model.parameters())
    assert model.text_encoder() is encoder


def test_a_tower_without_a_projection_has_its_own_width():
    from ovd_d2.encoders.text_towers import OpenAITextTower

    locked = LockedTextTower(LetterEncoder(), None)
    assert locked.dim == 8 and locked.projection is None and locked(["a"]).shape == (1, 8)
    torch.manual_seed(0)
    plain = OpenAITextTower(dim=None, width=16, heads=2, layers=1)
    torch.manual_seed(0)
    projected = OpenAITextTower(dim=12, width=16, heads=2, layers=1)
    assert (plain.dim, projected.dim) == (16, 12)
    assert set(projected.state_dict()) - set(plain.state_dict()) == {"text_projection"}
    plain.load_state_dict(projected.state_dict(), strict=False)
    torch.testing.assert_close(plain(CAPTIONS) @ projected.text_projection, projected(CAPTIONS))


def test_memory_of_captions_is_bounded(monkeypatch):
    monkeypatch.setattr("ovd_d2.encoders.text_towers._CACHED_CAPTIONS", 3)
    tower = LockedTextTower(LetterEncoder(), 8)
    expected = tower.encoder.encode(CAPTIONS)
    for rows in ([0, 1], [2, 3, 2], [0], [0, 1, 2, 3]):
        got = tower([CAPTIONS[i] for i in rows])
        torch.testing.assert_close(got, expected[rows])
        assert len(tower._memory) <= 4
    assert tower([]).shape == (0, 8)


def test_temperature_is_clipped_and_comes_down_again():
    model = tiny_clip(logit_scale_init=99.9)
    optimizer = torch.optim.SGD([model.logit_scale], lr=1.0)
    model.logit_scale.data.fill_(7.0)  # exp = 1097
    step(model, batch())
    assert model.logit_scale.exp().item() == pytest.approx(100, rel=1e-6)
    assert model.logit_scale.grad.item() != 0  # clamping in the graph would have cut it
    model.logit_scale.grad.fill_(0.5)
    optimizer.step()
    assert model.logit_scale.exp().item() < 100
    model.logit_scale.data.fill_(1.0)
    step(model, batch())
    assert model.logit_scale.item() == 1.0


def test_frozen_parameters_stay_and_a_pattern_without_any_is_refused():
    model = tiny_clip(freeze=["image_tower.0.*"])
    step(model, batch())
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == ["image_tower.0.weight", "image_tower.0.bias"]
    with pytest.raises(OVDError, match="MODEL.CLIP.FREEZE 'nothing'"):
        tiny_clip(freeze=["nothing"])


@pytest.mark.parametrize("value", [0.0, -1.0, 101.0])
def test_bad_first_temperature(value):
    with pytest.raises(OVDError, match="LOGIT_SCALE_INIT"):
        tiny_clip(logit_scale_init=value)


def test_equal_captions_are_no_negatives_if_asked():
    data = [{**sample, "caption": "a cat"} for sample in batch(2)]
    assert step(tiny_clip(ignore_equal_captions=True), data) == 0
    assert step(tiny_clip(), data) >= math.log(2) - 1e-6  # the texts cannot tell the images apart


def test_temperature_does_not_decay():
    from ovd_d2.engine.optimizer import build_optimizer

    cfg = config()
    cfg.SOLVER.WEIGHT_DECAY = 0.3
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    model = tiny_clip()
    groups = build_optimizer(cfg, model).param_groups
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert decay[id(model.logit_scale)] == 0
    assert decay[id(model.image_tower[0].weight)] == 0.3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"IMAGE_TOWER": "vgg"}, "IMAGE_TOWER is one of timm, clip_vit, clip_resnet"),
        ({"IMAGE_TOWER": "timm", "TIMM.NAME": "resnot"}, "TIMM.NAME resnot"),
        ({"IMAGE_TOWER": "clip_vit", "IMAGE_SIZE": 33}, "IMAGE_SIZE 33"),
        ({"IMAGE_TOWER": "clip_resnet", "IMAGE_SIZE": 40}, "IMAGE_SIZE 40"),
        ({"IMAGE_TOWER": "timm", "TIMM.WEIGHTS": "no.pth"}, "CLIP.TIMM.WEIGHTS names no file"),
        ({"TEXT_TOWER": "bert"}, "TEXT_TOWER is 'bert'"),
        ({"TEXT_TOWER": "locked:nothing"}, "unknown encoder 'nothing'"),
        ({"TEXT.WIDTH": 15}, "TEXT.WIDTH 15"),
    ],
)
def test_bad_parts_are_named(keys, message):
    with pytest.raises(OVDError, match=message):
        build_model(config(**keys))


def test_other_colour_order_is_refused():
    cfg = config()
    cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(OVDError, match="RGB"):
        build_model(cfg)


@pytest.mark.parametrize("text_dim", [8, 5])
def test_vocabulary_swaps_in_one_call(text_dim):
    """The class embeddings come from the model as it is now."""
    model = tiny_clip(text_dim=text_dim).eval()
    model.prompts = "name"
    for names in (("cat", "dog", "mug"), ("sky",)):
        model.set_vocabulary(names)
        assert get_vocabulary(model).names == names
        output = model(batch(1))[0]
        expected = model.encode_text(list(names)) @ output["image_embedding"]
        scale = model.logit_scale.exp()
        torch.testing.assert_close(output["logits"], (scale * expected).detach(), atol=1e-4, rtol=0)
        if text_dim != 8:
            model.text_tower.projection.weight.data.add_(1)
    set_vocabulary(model, None)
    assert "logits" not in model(batch(1))[0]
    with pytest.raises(OVDError, match="CLIP makes its class embeddings itself"):
        set_vocabulary(model, "cat", "minilm")
    assert get_vocabulary(model) is None


def test_prompts_and_synonyms_come_from_the_config():
    cfg = config()
    cfg.MODEL.OPEN_VOCAB.PROMPTS, cfg.MODEL.OPEN_VOCAB.USE_SYNONYMS = "a {}", True
    model = build_model(cfg).eval()
    model.set_vocabulary(Vocabulary(("cat",), synonyms=(("kitty",),)))
    mean = model.encode_text(["a cat", "a kitty"]).mean(dim=0, keepdim=True)
    expected = torch.nn.functional.normalize(mean, dim=1)
    torch.testing.assert_close(model.class_embeddings, expected, atol=1e-5, rtol=0)


def double_clip():
    model = tiny_clip(ignore_equal_captions=True).double()
    model.preprocessing = lambda images, own=model.preprocessing: own(images).double()
    return model


def run_as_rank(rank, port, out):
    """Two of the four pairs, through DistributedDataParallel."""
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, rank=rank, world_size=2)
    model = double_clip()
    loss = step(DistributedDataParallel(model), batch()[2 * rank : 2 * rank + 2])
    grads = {name: p.grad.tolist() for name, p in model.named_parameters()}
    Path(f"{out}.{rank}").write_text(json.dumps({"loss": loss, "grads": grads}))


def forked(function, *args):
    """Runs ``function`` in a copy of this process, which ends without cleaning up."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        function(*args)
        code = 0
    finally:
        os._exit(code)


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    ranks = [forked(run_as_rank, rank, port, tmp_path / "out") for rank in (0, 1)]
    assert [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks] == [0, 0]
    model = double_clip()
    loss = step(model, batch())
    results = [json.loads((tmp_path / f"out.{rank}").read_text()) for rank in (0, 1)]
    assert results[0]["loss"] != results[1]["loss"]
    assert sum(r["loss"] for r in results) / 2 == pytest.approx(loss, abs=1e-6)
    for name, parameter in model.named_parameters():
        for result in results:
            got = torch.tensor(result["grads"][name], dtype=torch.float64)
            torch.testing.assert_close(got, parameter.grad, atol=1e-6, rtol=1e-5)
