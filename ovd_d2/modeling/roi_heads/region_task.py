"""What ROI heads learn from target rows beside Detectron2's losses: one part per idea.

Letters: Ri rows of image i, R rows over the batch, F width of the region features, C x P x P a
pooled region.
"""

from collections.abc import Sequence

from detectron2.structures import Instances
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ovd_d2.errors import OVDError
from ovd_d2.structures import Supervision

REGION_TASK_REGISTRY = Registry("REGION_TASK")
REGION_TASK_REGISTRY.__doc__ = """
Tasks that ``MODEL.OPEN_VOCAB.REGION_TASKS`` names, built as ``Task(cfg, input_shape)`` with the
shape of one row of what :meth:`RegionTask.losses` gets: ``channels`` is F, or, for a task that
``has_head``, C beside ``height`` and ``width`` P.
"""


class RegionTask(nn.Module):
    """Losses of target rows of one kind, all of which go through one pooling pass.

    Attributes:
        kind: the rows it learns from; BOX stands for the sampled proposals.
        has_head: False: it gets the text branch's region features, of every cascade stage. True:
            it gets pooled regions, once: in a cascade the proposals of the last stage, other rows
            as pooled for the first.
    """

    __jit_unused_properties__ = ("learns",)

    kind: Supervision
    has_head: bool = False

    @property
    def learns(self) -> bool:
        """False for a head of its own of which every parameter is fixed."""
        parameters = list(self.parameters()) if self.has_head else []
        return not parameters or any(p.requires_grad for p in parameters)

    def losses(
        self, predictor: nn.Module, features: Tensor, rows: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """Weighted scalars ``loss_*``, the same names for every batch, which give every parameter
        of the task a gradient, also if R = 0.

        Args:
            predictor: the :class:`OpenVocabBoxPredictor` of the text branch (in a cascade: of this
                stage), with the present classes.
            features: (R, F) of the rows, or (R, C, P, P) if the task has a head.
            rows: per image, in the order of ``features``: target rows with their fields, classes
                of IMAGE_LABEL in [0, K); or proposals with ``gt_classes`` in [0, K].
        """
        raise NotImplementedError


def registered(registry: Registry, name: str, key: str) -> type[nn.Module]:
    """The class that the value ``name`` of config key ``key`` names; OVDError if there is none."""
    if name not in registry:
        known = ", ".join(sorted(known for known, _ in registry)) or "none"
        raise OVDError(f"{key} names {name!r}; registered are: {known}.")
    return registry.get(name)
