"""LSeg as a whole against the golden networks: evaluation and a training step, both forms."""

import sys
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from ovd_d2.checkpoint.lseg import renamed
from ovd_d2.encoders.openai_clip import import_clip

sys.path.append(str(Path(__file__).parent))

from lseg_golden import below, close, golden
from small_lseg import NAMES, golden_lseg

TINY, FEWSHOT = "lsegnet_tiny", "lsegnet_fewshot_tiny"


def rows(mode="fp32"):
    return golden(TINY)[f"eval.{mode}.text_features"].float()


def ours(name):
    return renamed(name, to_ours=True)


def test_golden_intermediate_maps():
    values, model = golden(TINY), golden_lseg(TINY, rows()).eval()
    with torch.no_grad():
        tokens = model.backbone.tokens(values["in.image"])
        for place in (2, 3, 4):
            assert close(tokens[place - 1], values[f"eval.block_hook{place}"])
        maps = list(model.backbone(values["in.image"]).values())
        for place, level in enumerate(maps, 1):
            assert close(level, values[f"eval.layer_{place}"])
        path = None
        for place in (3, 2, 1, 0):
            level = model.decoder.adapt[place](maps[place])
            fuse = model.decoder.fuse[place]
            path = fuse(level) if path is None else fuse(path, level)
            assert close(path, values[f"eval.path_{place + 1}"])


@pytest.mark.parametrize("mode", ["fp32", "fp16"])
def test_golden_scores(mode):
    values = golden(TINY)
    model = golden_lseg(TINY, rows(mode), half=mode == "fp16").eval()
    with torch.no_grad():
        words = rows(mode)
        tolerance = 1e-5 if mode == "fp32" else 3e-3  # the last bit of fp32 may decide a rounding
        lowres = model._logits(values["in.image"], words)
        assert close(lowres, values[f"eval.{mode}.logits_lowres"], tolerance)
        some = model._logits(values["in.image"], words[[2, 0, 4]])
        assert close(some, values[f"eval.{mode}.labelset_2_0_4.logits_lowres"], tolerance)
        if mode == "fp32":
            found = model([{"image": image} for image in values["in.image"]])
            found = torch.stack([one["sem_seg"] for one in found])
            assert close(found, values["eval.fp32.out"], 1e-5)


@pytest.mark.parametrize(("arch", "kind", "depth"), [(1, "bottleneck", 2), (2, "depthwise", 4)])
def test_golden_scores_behind_a_regulariser(arch, kind, depth):
    values = golden(TINY)
    model = golden_lseg(TINY, rows(), kind, depth).eval()
    found = model([{"image": values["in.image"][0]}])[0]["sem_seg"]
    assert close(found, values[f"eval.fp32.arch{arch}.depth{depth}.out_img0"], 1e-5)


def samples(values, **fields):
    target = values["in.target"].long()
    target = torch.where(target == -1, 255, target)
    return [{"image": i, "sem_seg": t, **fields} for i, t in zip(values["in.image"], target)]


def test_golden_training_step():
    values, model = golden(TINY), golden_lseg(TINY, rows()).train()
    with EventStorage():
        loss = model(samples(values))["loss_sem_seg"]
    loss.backward()
    assert close(loss, values["train.fp32.loss"])
    parameters = dict(model.named_parameters())
    for key, expected in below(values, "train.fp32.grad.").items():
        assert close(parameters[ours(key)].grad, expected, 5e-5), key
    compared = 0
    for key, norm in zip(values["train.gradnorm_names"], values["train.fp32.gradnorm"]):
        if not key.startswith("clip_pretrained."):
            assert close(parameters[ours(key)].grad.norm(), norm, 1e-4), key
            compared += 1
    assert compared == len(parameters)
    for key, expected in below(values, "train.after.").items():
        assert close(model.get_buffer(ours(key)), expected), key


def clip_rows():
    """(5, 32) of the few-shot golden network's texts, by CLIP's own text transformer."""
    state = below(golden(FEWSHOT), "w.clip_pretrained.")
    clip = import_clip().model.CLIP(
        embed_dim=32, image_resolution=32, vision_layers=1, vision_width=64, vision_patch_size=16,
        context_length=12, vocab_size=40, transformer_width=32, transformer_heads=2,
        transformer_layers=2,
    ).float()  # fmt: skip
    lost = clip.load_state_dict(state, strict=False)
    assert not lost.unexpected_keys
    assert all(key.startswith("visual.") or key == "logit_scale" for key in lost.missing_keys)
    with torch.no_grad():
        return clip.encode_text(golden(FEWSHOT)["in.tokens"])


def fewshot_samples(values):
    pairs = [("others", NAMES[int(place) + 1]) for place in values["in.class_info"]]
    return [
        {"image": image, "sem_seg": target.long(), "class_names": pair}
        for image, target, pair in zip(values["in.image"], values["in.target"], pairs)
    ]


def test_golden_scores_of_two_texts_per_image():
    values, model = golden(FEWSHOT), golden_lseg(FEWSHOT, clip_rows()).eval()
    found = model(fewshot_samples(values))
    found = torch.stack([one["sem_seg"] for one in found])
    assert close(found, values["rn.eval.fp32.out"], 1e-5)


def test_golden_training_step_of_two_texts_per_image():
    values, model = golden(FEWSHOT), golden_lseg(FEWSHOT, clip_rows()).train()
    loss = model(fewshot_samples(values))["loss_sem_seg"]
    loss.backward()
    assert close(loss, values["rn.train.fp32.loss"])

    def parameter(key):
        stage = key.startswith("pretrained.")
        name = key.replace("pretrained", "backbone.net") if stage else ours(key)
        return model.get_parameter(name)

    for key, expected in below(values, "rn.train.fp32.grad.").items():
        assert close(parameter(key).grad, expected, 5e-5), key
    norms = zip(values["rn.train.gradnorm_names"], values["rn.train.fp32.gradnorm"])
    compared = [
        close(parameter(key).grad.norm(), norm, 1e-4)
        for key, norm in norms
        if not key.startswith("clip_pretrained.")
    ]
    assert all(compared) and len(compared) == len(list(model.parameters()))


def test_text_is_normalised_as_the_public_code_does():
    """The model's rows are unit vectors; theirs are not: the logits are the same."""
    raw = rows()
    assert not torch.allclose(raw.norm(dim=1), torch.ones(len(raw)), atol=1e-2)
    model = golden_lseg(TINY, raw)
    assert torch.allclose(model.head.class_embeddings, F.normalize(raw, dim=1), atol=1e-6)
