"""OpenAI's CLIP in MODEL.CLIP: shapes of the published models, their files, other image sizes."""

import logging
from pathlib import Path

import pytest
import tiny_clip_models as tiny_models
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from safetensors.torch import save_file

from ovd_d2 import add_ovd_config
from ovd_d2.checkpoint import from_openai_clip, to_openai_clip
from ovd_d2.encoders.openai_clip import import_clip
from ovd_d2.engine import AtomicCheckpointer
from ovd_d2.errors import OVDError

CONFIGS = Path(__file__).parents[2] / "configs" / "clip"
# Arguments of OpenAI's model, and the parameters of the released ones.
PUBLISHED = {
    "rn50": (1024, 224, (3, 4, 6, 3), 64, None, 512, 8, 102_007_137),
    "rn101": (512, 224, (3, 4, 23, 3), 64, None, 512, 8, 119_688_033),
    "vit_b32": (512, 224, 12, 768, 32, 512, 8, 151_277_313),
    "vit_b16": (512, 224, 12, 768, 16, 512, 8, 149_620_737),
    "vit_l14": (768, 224, 24, 1024, 14, 768, 12, 427_616_513),
    "vit_l14_336": (768, 336, 24, 1024, 14, 768, 12, 427_944_193),
}


def recipe(name="vit_b32", **clip_keys):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    for key, value in clip_keys.items():
        cfg.merge_from_list([f"MODEL.CLIP.{key}", value])
    return cfg


def tiny(**clip_keys):
    """The recipe's model with the sizes of ``tiny_models.openai_clip_model``."""
    sizes = {"IMAGE_SIZE": 32, "EMBED_DIM": 32, "VIT.PATCH": 16, "VIT.WIDTH": 64, "VIT.LAYERS": 1,
             "TEXT.WIDTH": 64, "TEXT.HEADS": 1, "TEXT.LAYERS": 2}  # fmt: skip
    return build_model(recipe(**{**sizes, **clip_keys})).eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_have_the_parameters_of_the_published_models(name):
    dim, size, layers, width, patch, text_width, heads, count = PUBLISHED[name]
    cfg = recipe(name)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
        theirs = import_clip().model.CLIP(
            dim, size, layers, width, patch, 77, 49408, text_width, heads, 12
        )
    wanted = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {k: v.shape for k, v in to_openai_clip(model.state_dict()).items()} == wanted
    assert from_openai_clip(theirs.state_dict()).keys() == model.state_dict().keys()
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    heads = [m.num_heads for m in model.modules() if isinstance(m, torch.nn.MultiheadAttention)]
    assert heads == [
        m.num_heads for m in theirs.modules() if isinstance(m, torch.nn.MultiheadAttention)
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """OpenAI's model and its weights: as an archive in half precision, as two kinds of files."""
    folder, model = tmp_path_factory.mktemp("openai"), tiny_models.openai_clip_model()
    for value in (*model.parameters(), *model.buffers()):
        value.data = value.data.half().float()
    tokens = import_clip().tokenize(["cat"])
    archive = torch.jit.trace(model, (torch.zeros(1, 3, 32, 32), tokens))
    archive.save(folder / "archive.pt")
    torch.save(model.state_dict(), folder / "weights.pt")
    save_file({k: v.half() for k, v in model.state_dict().items()}, folder / "half.safetensors")
    return folder, model


@pytest.mark.filterwarnings("ignore")  # tracing warns at length
@pytest.mark.parametrize("name", ["archive.pt", "weights.pt", "half.safetensors"])
def test_every_file_of_openai_is_a_checkpoint(files, name, tmp_path):
    folder, theirs = files
    model = tiny()
    checkpointer = AtomicCheckpointer(model, str(tmp_path), whole=True)
    checkpointer.resume_or_load(str(folder / name), resume=False)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    texts = ["a cat", "two red mugs"]
    with torch.no_grad():
        pixels = model.preprocessing(images)
        _, expected = theirs(pixels, import_clip().tokenize(texts))
        ours = model.logit_scale.exp() * model.encode_text(texts) @ model.encode_image(images).T
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)


def test_other_networks_are_refused_by_a_name(files, tmp_path):
    folder, _ = files
    for keys, message in (
        ({"VIT.WIDTH": 128}, r"has shape \(\d+, 64\)|has shape \(64,\)"),
        ({"VIT.LAYERS": 2}, "lacks .* weights, such as image_tower.visual.transformer.resblocks.1"),
        ({"TEXT.LAYERS": 1}, "of a deeper network"),
    ):
        checkpointer = AtomicCheckpointer(tiny(**keys), str(tmp_path), whole=True)
        with pytest.raises(OVDError, match=message):
            checkpointer.resume_or_load(str(folder / "weights.pt"), resume=False)


def test_positions_of_another_image_size_are_resampled_and_said(tmp_path, caplog):
    """As for ViT-L/14@336px, which goes on from ViT-L/14; an affine map of positions stays one."""
    small, large = tiny(IMAGE_SIZE=64), tiny(IMAGE_SIZE=128)
    key = "image_tower.visual.positional_embedding"
    state = small.state_dict()
    rows = torch.arange(4.0)
    state[key] = torch.zeros_like(state[key])
    state[key][0] = 5.0
    state[key][1:, 0] = rows.repeat_interleave(4)
    state[key][1:, 1] = rows.repeat(4)
    torch.save({"model": state}, tmp_path / "small.pth")
    with caplog.at_level(logging.WARNING):
        AtomicCheckpointer(large, str(tmp_path)).resume_or_load(
            str(tmp_path / "small.pth"), resume=False
        )
    assert "4 patches a side, MODEL.CLIP.IMAGE_SIZE asks for 8" in caplog.text
    found = large.state_dict()[key]
    assert torch.equal(found[0], state[key][0])
    grid = found[1:].reshape(8, 8, -1)
    torch.testing.assert_close(grid[2:6, 0, 0], torch.tensor([0.75, 1.25, 1.75, 2.25]), atol=0.05,
                               rtol=0)  # fmt: skip
    torch.testing.assert_close(grid[..., 0], grid[..., 1].T)
    assert torch.equal(
        large.state_dict()["text_tower.text_projection"], state["text_tower.text_projection"]
    )


def test_only_clips_own_towers_have_openais_names():
    with pytest.raises(OVDError, match="image_tower.backbone.conv1.weight is no parameter of Open"):
        to_openai_clip({"image_tower.backbone.conv1.weight": torch.zeros(1)})
    with pytest.raises(OVDError, match="no checkpoint of CLIP"):
        to_openai_clip({"logit_scale": torch.zeros(1)})


@pytest.mark.filterwarnings("ignore")
def test_convert_command_there_and_back(files, tmp_path, capsys):
    """What was trained here becomes a text encoder and teacher of the detectors."""
    from ovd_d2.cli.app import main
    from ovd_d2.encoders import build_image_text_model

    def convert(*words):
        with pytest.raises(SystemExit) as done:
            main(["convert", "clip", *map(str, words)])
        return done.value.code, capsys.readouterr()

    folder, theirs = files
    ours, back = tmp_path / "ours.pth", tmp_path / "back.pth"
    assert convert(folder / "archive.pt", "--out", ours)[0] in (0, None)
    assert convert(ours, "--reverse", "--out", back)[0] in (0, None)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    model = build_image_text_model(f"openai-clip:{back}")
    expected = build_image_text_model(f"openai-clip:{folder / 'weights.pt'}")
    assert torch.equal(model.encode_image(images), expected.encode_image(images))
    assert torch.equal(model.encode_text(["a cat"]), expected.encode_text(["a cat"]))
    code, said = convert(ours, "--out", tmp_path / "again.pth")
    assert code == 2 and "no CLIP by OpenAI's names" in said.err
    assert convert(back, "--reverse", "--out", back)[0] == 2
