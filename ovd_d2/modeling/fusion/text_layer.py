"""The text's own layer after each fusion: one layer of BERT."""

from torch import nn


def text_layer(
    width: int,
    *,
    num_heads: int = 12,
    feedforward: int = 3072,
    dropout: float = 0.1,
    output_scale: float = 1.0,
) -> nn.TransformerEncoderLayer:
    """BERT's layer (Devlin et al. 2019): post-norm, exact GELU, norm eps 1e-12, no dropout between
    the two linear layers, weights N(0, 0.02) and biases 0 at the start.

    It is called as ``layer(text, src_key_padding_mask=~mask)`` with (B, L, width) and (B, L) bool,
    True on tokens that are not padding.

    Args:
        width: of the text.
        num_heads: of the attention; divides the width.
        feedforward: units of the hidden layer.
        dropout: on the attention and on both sums, in training.
        output_scale: factor on the first weights of the last linear maps of attention and hidden
            units; 0: the layer starts as its two norms.
    """
    layer = nn.TransformerEncoderLayer(
        width, num_heads, feedforward, dropout, "gelu", layer_norm_eps=1e-12, batch_first=True
    )
    layer.dropout = nn.Identity()  # BERT has none there
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "norm" not in name:
            outwards = name in ("self_attn.out_proj.weight", "linear2.weight")
            nn.init.normal_(parameter, std=0.02 * (output_scale if outwards else 1))
    return layer
