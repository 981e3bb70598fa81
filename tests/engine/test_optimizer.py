"""Learning rate and weight decay of every parameter of the grounded detectors' recipes."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from small_detclip import small_detclip
from small_glip import small_glip
from torch import nn

from ovd_d2 import add_ovd_config
from ovd_d2.engine.optimizer import build_lr_scheduler, build_optimizer
from ovd_d2.errors import OVDError

CONFIGS = Path(__file__).parents[2] / "configs"


def settings_of(recipe, model):
    """Name of a parameter -> its learning rate and weight decay under the recipe's SOLVER."""
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.merge_from_file(str(CONFIGS / recipe))
    groups = build_optimizer(cfg, model).param_groups
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    return {name: found[id(p)] for name, p in model.named_parameters()}


def test_glip_as_its_public_code(monkeypatch):
    """Text 0.1 x lr; whatever has "bias" in its name 2 x that and no decay; norms decay."""
    found = settings_of("glip/Base-glip_t.yaml", small_glip(monkeypatch))
    for name, settings in found.items():
        rate, decay = (1e-5 if name.startswith("text_backbone.") else 1e-4), 1e-4
        if "bias" in name:
            rate, decay = 2 * rate, 0.0
        elif name.endswith(("log_scale", "level_scales")):
            decay = 0.0
        assert settings == pytest.approx((rate, decay), rel=1e-9), name
    seen = " ".join(found)
    for part in ("relative_position_bias_table", "in_proj_bias", "text_bias", "log_scale",
                 "visual_scale", "text_backbone.model.encoder", "level_scales"):  # fmt: skip
        assert part in seen


def test_detclip_decays_kernels_and_tables_of_words_alone():
    model = small_detclip()
    found = settings_of("detclip/Base-detclip_t.yaml", model)
    for name, parameter in model.named_parameters():
        rate = 2.8e-5 if name.startswith("text.") else 2.8e-4
        decay = 0.05 if parameter.ndim > 1 and "position_bias" not in name else 0.0
        assert found[name] == pytest.approx((rate, decay), rel=1e-9), name
    assert found["head.log_scale"][1] == found["head.level_scales"][1] == 0
    assert found["head.bias"][1] == 0


def test_without_a_key_for_biases_they_are_as_any_parameter():
    model = small_detclip()
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = 0.5, 0.25
    groups = build_optimizer(cfg, model).param_groups
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found[id(model.head.bias)] == (0.5, 0.25)
    assert found[id(model.head.log_scale)] == (0.5, 0.0)


def test_betas_and_epsilon_of_adam_are_those_of_the_config():
    model = torch.nn.Linear(2, 2)
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.ADAM_BETAS, cfg.SOLVER.ADAM_EPS = "ADAMW", [0.8, 0.98], 1e-6
    for clipping in (False, True):
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = clipping
        (group, *_) = build_optimizer(cfg, model).param_groups
        assert group["betas"] == (0.8, 0.98) and group["eps"] == 1e-6
    cfg.SOLVER.OPTIMIZER = "SGD"
    with pytest.raises(OVDError, match=r"SOLVER.ADAM_BETAS is \[0.8, 0.98\], which .* SGD"):
        build_optimizer(cfg, model)


class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.text_backbone = nn.Linear(2, 2)
        self.backbone = nn.Linear(2, 2)
        self.head = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))


def mdetr_solver(**linear):
    cfg = get_cfg()
    add_ovd_config(cfg)
    solver = cfg.SOLVER
    solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY_NORM = "ADAMW", 1e-4, 1e-4
    solver.LR_MULTIPLIERS = [["backbone.", 0.1], ["text_backbone.", 0.5]]
    solver.MAX_ITER, solver.STEPS, solver.GAMMA, solver.WARMUP_ITERS = 10000, (8000,), 0.1, 0
    solver.LINEAR_LR.PREFIXES = ["text_backbone."]
    for key, value in linear.items():
        solver.LINEAR_LR[key] = value
    return cfg


def rates(cfg, model, steps):
    """(steps, 3) rates of head, backbone and text backbone at these iterations."""
    optimizer = build_optimizer(cfg, model)
    group_of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    parts = [model.head[0].weight, model.backbone.weight, model.text_backbone.weight]
    scheduler, found = build_lr_scheduler(cfg, optimizer), []
    for step in range(max(steps) + 1):
        if step in steps:
            found.append([group_of[id(p)]["lr"] for p in parts])
        optimizer.step()
        scheduler.step()
    return found


def test_the_schedule_of_the_text_is_the_public_code_s():
    """Up over 1 % of the steps, down to 0; ours has no first step at the full rate."""
    golden = np.load(Path(__file__).parents[1] / "golden" / "mavl" / "losses.npz")
    steps = golden["schedule.step"].tolist()
    found = rates(mdetr_solver(), TwoParts(), steps)
    np.testing.assert_allclose(found, golden["schedule.lr_main_backbone_text"], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("share", "wanted"), [(0.0, (1.0, 0.5)), (1.0, (0.0, 0.5))])
def test_a_schedule_may_go_one_way_alone(share, wanted):
    cfg = mdetr_solver(WARMUP=share)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 10, (8,)
    found = [text / 5e-5 for *_, text in rates(cfg, TwoParts(), [0, 5])]
    assert found == pytest.approx(wanted)


def test_a_resumed_schedule_goes_on():
    cfg, model = mdetr_solver(), TwoParts()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    for _ in range(150):
        optimizer.step()
        scheduler.step()
    again = build_optimizer(cfg, model)
    resumed = build_lr_scheduler(cfg, again)
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    for one, schedule in ((optimizer, scheduler), (again, resumed)):
        one.step()
        schedule.step()
    assert [g["lr"] for g in again.param_groups] == [g["lr"] for g in optimizer.param_groups]


def test_a_prefix_of_nothing_is_refused():
    cfg = mdetr_solver(PREFIXES=["words."])
    with pytest.raises(OVDError, match="SOLVER.LINEAR_LR.PREFIXES names 'words.', which no param"):
        build_optimizer(cfg, TwoParts())


def adamw(device, amp=False):
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).to(device)
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.AMP.ENABLED = amp
    cfg.SOLVER.CLIP_GRADIENTS.merge_from_other_cfg(
        CfgNode({"ENABLED": True, "CLIP_TYPE": "full_model", "CLIP_VALUE": 0.1})
    )
    return model, build_optimizer(cfg, model)


def test_one_kernel_on_the_cpu_makes_the_steps_of_adamw():
    model, optimizer = adamw("cpu")
    plain = copy.deepcopy(model)
    groups = optimizer.param_groups
    assert all(group["fused"] for group in groups)
    slow = torch.optim.AdamW(
        [{"params": [p], "weight_decay": g["weight_decay"]}
         for p, g in zip(plain.parameters(), [g for g in groups for _ in g["params"]])],
        lr=groups[0]["lr"], eps=groups[0]["eps"], betas=groups[0]["betas"], foreach=False,
    )  # fmt: skip
    data = torch.randn(6, 5)
    for _ in range(5):
        for network, its in ((model, optimizer), (plain, slow)):
            its.zero_grad()
            network(data).square().sum().backward()
            if its is slow:
                nn.utils.clip_grad_norm_(network.parameters(), 0.1)
            its.step()
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert not torch.equal(model[0].weight, adamw("cpu")[0][0].weight)


@pytest.mark.parametrize("where", [("meta", False), ("cpu", True)])
def test_elsewhere_clipping_comes_before_any_scaler(where):
    """A fused optimizer is handed scaled gradients by a GradScaler, and would clip those."""
    _, optimizer = adamw(*where)
    assert not any(group["fused"] for group in optimizer.param_groups)
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)


def test_a_scaled_loss_on_the_cpu_is_clipped_as_it_is():
    """Two steps whose gradients are of different lengths, so that the clipping shows."""
    stepped = []
    for scale in (1.0, 2.0**16):
        torch.manual_seed(0)
        model, optimizer = adamw("cpu", amp=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for length in (0.01, 100.0):
            optimizer.zero_grad()
            scaler.scale((model(torch.ones(2, 5)) * length).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        stepped.append([p.detach().clone() for p in model.parameters()])
    torch.testing.assert_close(stepped[0], stepped[1], rtol=0, atol=1e-6)
