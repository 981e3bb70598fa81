"""From region features to the text space: what ``MODEL.OPEN_VOCAB.PROJECTION`` names."""

from torch import nn

from ovd_d2.errors import OVDError

from .weight_transfer import WeightTransferProjection


def linear_projection(in_features: int, embed_dim: int, hidden: int = 0) -> nn.Module:
    """One Linear of initial std 0.01, or Linear - ReLU - Linear if ``hidden`` is not 0."""
    last = nn.Linear(hidden or in_features, embed_dim)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    if not hidden:
        return last
    return nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(inplace=True), last)


def build_projection(
    kind: str,
    in_features: int,
    embed_dim: int,
    hidden: int = 0,
    transfer_start: str = "released",
    transfer_teacher: str = "frozen",
) -> nn.Module:
    """The projection of a classifier.

    Args:
        kind: "linear" or "weight_transfer".
        in_features: width of the region features.
        embed_dim: D.
        hidden: of "linear", see :func:`linear_projection`.
        transfer_start, transfer_teacher: of "weight_transfer", see
            :class:`WeightTransferProjection`.

    Raises:
        OVDError: unknown kind, start or teacher, or ``hidden``, a start or a teacher for a kind
            that has none.
    """
    if kind == "linear":
        if transfer_start != "released":
            raise OVDError(
                f'MODEL.OPEN_VOCAB.TRANSFER_START is "{transfer_start}", but PROJECTION is '
                '"linear": set PROJECTION weight_transfer, or leave TRANSFER_START at "released".'
            )
        if transfer_teacher != "frozen":
            raise OVDError(
                f'MODEL.OPEN_VOCAB.TRANSFER_TEACHER is "{transfer_teacher}", but PROJECTION is '
                '"linear": set PROJECTION weight_transfer, or leave TRANSFER_TEACHER at "frozen".'
            )
        return linear_projection(in_features, embed_dim, hidden)
    if kind != "weight_transfer":
        raise OVDError(
            f'MODEL.OPEN_VOCAB.PROJECTION is "{kind}"; use "linear" or "weight_transfer".'
        )
    if hidden:
        raise OVDError(
            f"MODEL.OPEN_VOCAB.PROJECTION_HIDDEN is {hidden}; weight transfer has hidden layers of "
            "its own: set it to 0."
        )
    return WeightTransferProjection(
        in_features, embed_dim, start=transfer_start, teacher=transfer_teacher
    )
