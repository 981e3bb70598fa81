"""MODEL.TUNE: what stays as it is, and adapters that leave no trace in a checkpoint."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from small_detclip import detclip_config, small_detclip
from torch import nn

from ovd_d2 import add_ovd_config
from ovd_d2.checkpoint import load_weights
from ovd_d2.errors import OVDError
from ovd_d2.modeling.adapters import (
    adaptable_layers,
    adapter_state,
    add_adapters,
    load_adapter_state,
)
from ovd_d2.modeling.tuning import RECIPES, declared_recipes, tune_model

NAMES = ("qkv", "proj", "out_proj")


def tiny_swin():
    timm = pytest.importorskip("timm")
    return timm.create_model(
        "swin_tiny_patch4_window7_224", features_only=True, img_size=64, window_size=2,
        embed_dim=8, depths=(1, 1), num_heads=(1, 2), out_indices=(0, 1),
    ).eval()  # fmt: skip


def output(net):
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(2, 3, 64, 64, generator=generator)
    return torch.cat([level.flatten() for level in net(x)])


def trained(net, steps=3):
    """The network after steps of SGD on all that learns."""
    learns = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learns, lr=1.0)
    for _ in range(steps):
        optimizer.zero_grad()
        output(net).square().mean().backward()
        optimizer.step()
    return net


def test_only_adapters_train_and_the_merged_weights_do_the_same():
    pytest.importorskip("peft")
    net = tiny_swin()
    plain, before = copy.deepcopy(net), output(net)
    layers = add_adapters(net, rank=2, alpha=4.0, names=NAMES)
    assert len(layers) == 4 and all(layer.endswith(("qkv", "proj")) for layer in layers)
    assert torch.equal(output(net), before)
    learns = {name for name, p in net.named_parameters() if p.requires_grad}
    assert len(learns) == 8 and all(".lora_" in name for name in learns)

    fixed = {n: p.clone() for n, p in net.named_parameters() if not p.requires_grad}
    trained(net)
    for name, parameter in net.named_parameters():
        assert name in learns or torch.equal(parameter, fixed[name]), name
    state = net.state_dict()
    assert list(state) == list(plain.state_dict())
    fit = load_weights(plain, state, "merged")
    fit.check_whole()
    after = output(net)
    assert (after - before).abs().max() > 1e-3
    assert (output(plain) - after).abs().max() < 1e-5

    # peft's own merge
    from peft.tuners.lora import LoraLayer

    for module in net.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    for layer in layers:
        merged = net.get_submodule(layer).base_layer.weight
        assert torch.allclose(merged, plain.get_parameter(f"{layer}.weight"), atol=1e-6)


def test_adapters_are_kept_apart_to_go_on():
    pytest.importorskip("peft")
    net = tiny_swin()
    start = copy.deepcopy(net.state_dict())
    add_adapters(net, rank=2, alpha=4.0, names=NAMES)
    trained(net)
    state, parts = copy.deepcopy(net.state_dict()), copy.deepcopy(adapter_state(net))
    again = tiny_swin()
    again.load_state_dict(start)
    add_adapters(again, rank=2, alpha=4.0, names=NAMES)
    again.load_state_dict(state)
    load_adapter_state(again, parts)
    assert torch.equal(output(again), output(net))
    assert torch.equal(output(trained(again)), output(trained(net)))
    add_adapters(other := tiny_swin(), rank=3, alpha=4.0, names=NAMES)
    for model in (other, tiny_swin()):
        with pytest.raises(OVDError, match="resume with the MODEL.TUNE.LORA of that run"):
            load_adapter_state(model, parts)
    assert adapter_state(tiny_swin()) == {}


def test_layers_that_get_none():
    net = nn.ModuleDict(
        {"torchs": nn.MultiheadAttention(4, 1), "frozen": nn.ModuleDict({"proj": nn.Linear(2, 2)}),
         "out_proj": nn.Linear(2, 2), "conv": nn.ModuleDict({"proj": nn.Conv2d(1, 1, 1)})}
    )  # fmt: skip
    net["frozen"].requires_grad_(False)
    assert adaptable_layers(net, NAMES) == ["out_proj"]
    with pytest.raises(OVDError, match="has no attention layer that learns"):
        add_adapters(nn.Sequential(nn.Conv2d(1, 1, 1)), rank=2, alpha=1.0, names=NAMES)


def tuned(**keys):
    """A small DetCLIP over Swin, in training mode."""
    model, cfg = small_detclip(), detclip_config()
    for name, value in keys.items():
        cfg.merge_from_list([f"MODEL.TUNE.{name.replace('_', '.', 1)}", value])
    return tune_model(model, cfg).train()


def learning(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_prefixes_say_what_is_trained():
    everything = learning(small_detclip())
    assert learning(tuned()) == everything
    frozen = learning(tuned(FROZEN=["backbone.", "text."]))
    assert frozen == {n for n in everything if not n.startswith(("backbone.", "text."))}
    only = learning(tuned(ONLY=["head.embedding."]))
    assert only == {"head.embedding.weight", "head.embedding.bias"}
    assert learning(tuned(ONLY=["head."], FROZEN=["head.embedding."])) == {
        n for n in everything if n.startswith("head.") and "head.embedding" not in n
    }
    with pytest.raises(
        OVDError, match="MODEL.TUNE.ONLY names 'heads.', which no .* there are back"
    ):
        tuned(ONLY=["heads."])


def test_adapters_beside_what_is_named():
    pytest.importorskip("peft")
    found = learning(tuned(LORA_RANK=2, ONLY=["head.embedding."]))
    assert {"head.embedding.weight", "head.embedding.bias"} < found
    rest = {n for n in found if not n.startswith("head.")}
    assert rest and all(".lora_" in n and n.startswith("backbone.") for n in rest)


def test_what_is_fixed_behaves_as_in_evaluation():
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)), nn.Dropout(0.5),
        nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4),
    )  # fmt: skip
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.MODEL.TUNE.FROZEN = ["0."]
    tune_model(net, cfg).train()
    x = torch.rand(2, 3, 4, 4)
    before = copy.deepcopy(net.state_dict())
    first = net[0](x)
    assert torch.equal(first, net[0](x)) and torch.equal(first, copy.deepcopy(net[0]).eval()(x))
    net(x).sum().backward()
    after = net.state_dict()
    assert torch.equal(before["0.1.running_mean"], after["0.1.running_mean"])
    assert not torch.equal(before["3.running_mean"], after["3.running_mean"])
    assert net[0][0].weight.grad is None and net[2].weight.grad is not None
    assert not torch.equal(net[1](first), net[1](first))  # not fixed: it still drops


@pytest.mark.parametrize(
    ("arch", "heads", "known"),
    [
        ("GeneralizedRCNN", "OpenVocabROIHeads", {"full", "frozen", "linear", "lora"}),
        ("GeneralizedRCNN", "OpenVocabCascadeROIHeads", {"full", "frozen", "linear", "lora"}),
        ("GLIP", "StandardROIHeads", {"full", "frozen", "linear", "prompt", "lora"}),
        ("DetCLIP", "StandardROIHeads", {"full", "frozen", "linear", "lora"}),
        ("HuggingFaceDetector", "StandardROIHeads", {"full", "frozen", "lora"}),
        ("GeneralizedRCNN", "StandardROIHeads", None),
        ("LSeg", "StandardROIHeads", None),
    ],
)
def test_models_declare_their_recipes(arch, heads, known):
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME = arch, heads
    found = declared_recipes(cfg)
    assert (None if found is None else set(found)) == known
    for recipe, settings in (found or {}).items():
        assert recipe in RECIPES
        cfg.merge_from_list(list(settings))  # such keys exist
