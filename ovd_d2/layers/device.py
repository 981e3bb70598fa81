"""Where a model computes."""

import torch

from ovd_d2.errors import OVDError

KINDS = ("cpu", "cuda", "mps")


def usable_device(name: str | torch.device, what: str) -> torch.device:
    """The device called ``name``.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps", ...
        what: the key or argument it comes from, for messages.

    Raises:
        OVDError: no such device, or none that models can be trained on here.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in KINDS:
        raise OVDError(f"{what} {str(name)!r} is unknown: use cpu, cuda, cuda:N or mps.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OVDError(
            f"{what} {str(name)!r} is not here, there are {torch.cuda.device_count()} GPUs: use "
            "cpu or another."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise OVDError(
            f"{what} {str(name)!r} is for Apple's GPUs, which torch lacks here: use cpu."
        )
    return device
