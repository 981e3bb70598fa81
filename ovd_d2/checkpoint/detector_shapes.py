"""Keys and shapes of Detectron2's ResNet detectors, for checking foreign state dicts whole."""

# Blocks of res2 .. res5 by those of res3 and res4.
_BLOCKS = {(4, 6): (3, 4, 6, 3), (4, 23): (3, 4, 23, 3), (8, 36): (3, 8, 36, 3)}
MASK_HEAD = {
    **{f"mask_fcn{i}": (256, 256, 3, 3) for i in (1, 2, 3, 4)},
    "deconv": (256, 256, 2, 2),
    "predictor": (1, 256, 1, 1),
}


def resnet_fpn_shapes(keys: set[str]) -> dict[str, tuple[int, ...]]:
    """Backbone, RPN and two-layer box head of Detectron2's R50-FPN (or R101, R152)."""
    trunk = "backbone.bottom_up."
    blocks = _blocks(keys, trunk)
    shapes = _stem(trunk)
    for stage in (2, 3, 4, 5):
        shapes.update(_stage(f"{trunk}res{stage}", stage, blocks[stage - 2]))
        wide = 64 * 2**stage
        shapes.update(layer(f"backbone.fpn_lateral{stage}", (256, wide, 1, 1)))
        shapes.update(layer(f"backbone.fpn_output{stage}", (256, 256, 3, 3)))
    shapes.update(_rpn(256, 3))
    shapes.update(layer("roi_heads.box_head.fc1", (1024, 256 * 7 * 7)))
    shapes.update(layer("roi_heads.box_head.fc2", (1024, 1024)))
    return shapes


def resnet_c4_shapes(keys: set[str]) -> dict[str, tuple[int, ...]]:
    """Backbone, RPN and res5 of Detectron2's R50-C4 (or R101, R152)."""
    blocks = _blocks(keys, "backbone.")
    shapes = _stem("backbone.")
    for stage in (2, 3, 4):
        shapes.update(_stage(f"backbone.res{stage}", stage, blocks[stage - 2]))
    shapes.update(_stage("roi_heads.res5", 5, blocks[3]))
    shapes.update(_rpn(1024, 15))
    return shapes


def _blocks(keys: set[str], trunk: str) -> tuple[int, ...]:
    found = []
    for stage in ("res3", "res4"):
        prefix = f"{trunk}{stage}."
        numbers = [k.removeprefix(prefix).split(".")[0] for k in keys if k.startswith(prefix)]
        found.append(1 + max((int(n) for n in numbers if n.isdecimal()), default=-1))
    return _BLOCKS.get(tuple(found), _BLOCKS[4, 6])


def layer(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Weight and bias of a linear layer or a convolution."""
    deconvolution = name.endswith("deconv")
    return {f"{name}.weight": shape, f"{name}.bias": (shape[1 if deconvolution else 0],)}


def _convolution(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """A convolution followed by a frozen batch norm."""
    ends = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.weight": shape, **{f"{name}.norm.{end}": shape[:1] for end in ends}}


def _stem(trunk: str) -> dict[str, tuple[int, ...]]:
    return _convolution(f"{trunk}stem.conv1", (64, 3, 7, 7))


def _stage(name: str, stage: int, blocks: int) -> dict[str, tuple[int, ...]]:
    wide, narrow = 64 * 2**stage, 16 * 2**stage
    before = 64 if stage == 2 else wide // 2
    shapes = _convolution(f"{name}.0.shortcut", (wide, before, 1, 1))
    for block in range(blocks):
        of_block = {
            "conv1": (narrow, before if block == 0 else wide, 1, 1),
            "conv2": (narrow, narrow, 3, 3),
            "conv3": (wide, narrow, 1, 1),
        }
        for layer, shape in of_block.items():
            shapes.update(_convolution(f"{name}.{block}.{layer}", shape))
    return shapes


def _rpn(channels: int, anchors: int) -> dict[str, tuple[int, ...]]:
    head = "proposal_generator.rpn_head."
    return {
        **layer(f"{head}conv", (channels, channels, 3, 3)),
        **layer(f"{head}objectness_logits", (anchors, channels, 1, 1)),
        **layer(f"{head}anchor_deltas", (4 * anchors, channels, 1, 1)),
    }
