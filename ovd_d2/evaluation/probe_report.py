"""How good a model's image features are: zero-shot, linear probe and few-shot in one report."""

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from ovd_d2.errors import OVDError
from ovd_d2.evaluation.labelled_crops import (
    LabelledCrops,
    encode_crops,
    load_labelled_crops,
    name_crops,
)
from ovd_d2.evaluation.linear_probe import (
    MOST_FITS,
    few_shot_probe,
    few_shot_rows,
    linear_probe,
)
from ovd_d2.language import TextEmbeddingBank


def probe_report(
    model: Any,
    *,
    train: str,
    validation: str,
    test: str,
    prompts: Sequence[str] = ("photo", "vild63", "imagenet80"),
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    seeds: Sequence[int] = (0, 1, 2),
    probe: bool = True,
) -> dict[str, Any]:
    """Zero-shot accuracy per prompt set, the linear probe and the few-shot curve on ``test``.

    Args:
        model: a ``clip.ImageTextModel``.
        train: data set or folder, see ``load_labelled_crops``.
        validation: the same, for the strength of the classifiers.
        test: the same.
        prompts: as MODEL.OPEN_VOCAB.PROMPTS.
        shots: images per class; () for no few-shot part.
        seeds: of the draws of few images.
        probe: with the linear probe.

    Returns:
        {"model", "data", "zero_shot": {prompts: metrics}, "linear_probe", "few_shot"}.

    Raises:
        OVDError: data that are not there, or whose classes differ.
    """
    splits = {"train": train, "validation": validation, "test": test}
    crops = {split: load_labelled_crops(name) for split, name in splits.items()}
    _check_same_classes(list(crops.values()))
    if shots:  # before hours of encoding, not after
        few_shot_rows(crops["train"].labels.numpy(), max(shots), 0)
    test_embeddings = encode_crops(model.encode_pixels, model.preprocessing, crops["test"])
    report: dict[str, Any] = {
        "model": model.encoder_id,
        "data": {k: {"name": c.name, "images": len(c.records)} for k, c in crops.items()},
        "zero_shot": {
            name: name_crops(
                test_embeddings, crops["test"], TextEmbeddingBank(model.text_encoder, name)
            )
            for name in prompts
        },
    }
    if not (probe or shots):
        return report
    arrays = [
        (
            encode_crops(model.encode_backbone, model.preprocessing, one).numpy(),
            one.labels.numpy(),
        )
        for one in crops.values()
    ]
    probes = bool(probe) + len(shots) * len(seeds)
    with tqdm(desc="logistic regressions", unit="fit", total=MOST_FITS * probes, delay=5.0) as bar:
        if probe:
            report["linear_probe"] = linear_probe(*arrays, note_fit=bar.update)
        if shots:
            report["few_shot"] = few_shot_probe(
                *arrays, shots=shots, seeds=seeds, note_fit=bar.update
            )
    return report


def _check_same_classes(crops: list[LabelledCrops]) -> None:
    for other in crops[1:]:
        if other.vocabulary.names != crops[0].vocabulary.names:
            raise OVDError(
                f"{crops[0].name} and {other.name} have different classes; name splits of one "
                "data set."
            )


def report_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines of the report as (what, value) for a table."""
    rows = []
    for name, metrics in report["zero_shot"].items():
        extra = [f"{key[5:]} {metrics[key]:.1f}" for key in ("top1_base", "top1_novel")
                 if metrics.get(key) is not None]  # fmt: skip
        text = f"{metrics['top1']:.1f} % (top-5 {metrics['top5']:.1f}"
        rows.append((f"zero-shot, prompts {name}", ", ".join([text, *extra]) + ")"))
    if "linear_probe" in report:
        found = report["linear_probe"]
        rows.append(("linear probe", f"{found['top1']:.1f} % (C = {found['C']:.3g})"))
    for shots, found in report.get("few_shot", {}).items():
        value = f"{found['top1']:.1f} % (spread {found['spread']:.1f})"
        rows.append((f"{shots} per class", value))
    return rows
