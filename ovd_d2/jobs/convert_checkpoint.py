"""Converts checkpoints of other projects to ours, and ours back.

Letters: K classes, D embedding width.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ovd_d2.checkpoint import (
    check_weights_name,
    from_detic,
    from_glip,
    from_lseg,
    from_object_centric_ovd,
    read_lightning_state_dict,
    read_state_dict,
    to_glip,
    to_lseg,
    to_object_centric_ovd,
    write_state_dict,
)
from ovd_d2.encoders import text_encoder_id
from ovd_d2.errors import OVDError
from ovd_d2.files.atomic import check_output
from ovd_d2.language import Vocabulary
from ovd_d2.language.embedding_files import (
    manifest_path,
    read_embedding_file,
    write_embedding_file,
)


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        entries: tensors in the new file.
        facts: lines for the user: what the model is, what was left out and why.
    """

    entries: int
    facts: tuple[str, ...]


def convert_object_centric_ovd(
    source: Path, out: Path, embeddings: Path | None, vocabulary: str, encoder: str
) -> Conversion:
    """Converts a checkpoint of object-centric-ovd to ours.

    Args:
        source: .pth, .safetensors or (trusted) .pkl.
        out: .pth or .safetensors.
        embeddings: .safetensors file to write the class embeddings to; None: they are left out.
        vocabulary: names of its rows, as ``MODEL.OPEN_VOCAB.VOCABULARY``; "": they are not named.
        encoder: who made the embeddings, as ``MODEL.OPEN_VOCAB.TEXT_ENCODER``; it is not loaded.

    Raises:
        OVDError: what is wrong with a file or the names; nothing is written then.
    """
    _check_paths(source, out, embeddings, vocabulary)
    found = from_object_centric_ovd(read_state_dict(str(source)))
    kind = "weight_transfer" if found.weight_transfer else "linear"
    facts = [
        f"its projection is {kind} (MODEL.OPEN_VOCAB.PROJECTION)",
        f"MODEL.OPEN_VOCAB.USE_BIAS {found.has_bias}",
    ]
    facts += _write_embeddings(
        embeddings, found.class_embeddings, found.image_counts, vocabulary, encoder
    )
    write_state_dict(str(out), found.weights)
    return Conversion(len(found.weights), tuple(facts))


def convert_to_object_centric_ovd(
    source: Path, out: Path, embeddings: Path | None, vocabulary: str
) -> Conversion:
    """Converts a checkpoint of ours to one of object-centric-ovd.

    Args:
        source: .pth or .safetensors of ours.
        out: .pth or .safetensors.
        embeddings: file of the (K, D) class embeddings, .safetensors or .npy.
        vocabulary: whose image counts are written; "": those that the embeddings' manifest has.

    Raises:
        OVDError: as above; also without ``embeddings``.
    """
    if embeddings is None:
        raise OVDError(
            "--reverse needs --embeddings FILE: object-centric-ovd keeps the class embeddings in "
            "its checkpoints, and ours do not hold them."
        )
    _check_paths(source, out)
    check_output("--out", out, [embeddings, manifest_path(embeddings)])
    rows, manifest = read_embedding_file(embeddings)
    counts = manifest.get("image_counts")
    if vocabulary:
        names = Vocabulary.load(vocabulary)
        counts = names.image_counts or counts
        _check_count(len(names), len(rows), vocabulary)
    weights = to_object_centric_ovd(read_state_dict(str(source)), rows, _as_counts(counts))
    write_state_dict(str(out), weights)
    facts = () if counts else ("no image counts are known, so it has no freq_weight",)
    return Conversion(len(weights), facts)


def convert_detic(
    source: Path, out: Path, embeddings: Path | None, vocabulary: str, encoder: str
) -> Conversion:
    """The parts of Detic's checkpoint that a detector of ours can take: all of OVD-COCO's and of
    ViLD_200e's, the cascade of CenterNet2's.

    Arguments and errors as for :func:`convert_object_centric_ovd`.
    """
    _check_paths(source, out, embeddings, vocabulary)
    found = from_detic(read_state_dict(str(source)))
    # CenterNet2's configs alone multiply with the proposal's score.
    multiplied = found.heads == "OpenVocabCascadeROIHeads"
    facts = [
        f"for MODEL.ROI_HEADS.NAME {found.heads} with MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True and, "
        "under MODEL.OPEN_VOCAB, LOGIT_SCALE 50, BACKGROUND zero, BOX_MLP True, USE_BIAS "
        f"{found.has_bias}, MULT_PROPOSAL_SCORE {multiplied}"
    ]
    facts += _write_embeddings(
        embeddings, found.class_embeddings, found.image_counts, vocabulary, encoder
    )
    facts += [f"left out {prefix} ({n} tensors): {why}" for prefix, n, why in found.left_out]
    write_state_dict(str(out), found.weights)
    return Conversion(len(found.weights), tuple(facts))


def convert_glip(source: Path, out: Path) -> Conversion:
    """GLIP's checkpoint as ours.

    Args:
        source: .pth, .safetensors or (trusted) .pkl.
        out: .pth or .safetensors.

    Raises:
        OVDError: what is wrong with a file; nothing is written then.
    """
    _check_paths(source, out)
    found = from_glip(read_state_dict(str(source)))
    facts = [
        f"MODEL.GLIP.NUM_BLOCKS {found.num_blocks}, FUSION {found.fusion}, COARSE_OFFSETS buffer; "
        f"MODEL.SWIN.DEPTHS {list(found.swin_depths)}, EMBED_DIM {found.embed_dim}"
    ]
    if found.left_out:
        facts.append(f"left out, for nothing uses them: {', '.join(found.left_out)}")
    write_state_dict(str(out), found.weights)
    return Conversion(len(found.weights), tuple(facts))


def convert_to_glip(source: Path, out: Path) -> Conversion:
    """Our checkpoint as GLIP's; arguments and errors as for :func:`convert_glip`."""
    _check_paths(source, out)
    weights = to_glip(read_state_dict(str(source)))
    write_state_dict(str(out), weights)
    return Conversion(len(weights), ("rpn.head.cls_logits, which nothing uses, is zeros",))


def convert_lseg(source: Path, out: Path) -> Conversion:
    """LSeg's checkpoint as ours.

    Args:
        source: .ckpt (of Lightning), .pth or .safetensors.
        out: .pth or .safetensors.

    Raises:
        OVDError: what is wrong with a file; nothing is written then.
    """
    _check_paths(source, out)
    found = from_lseg(read_lightning_state_dict(str(source)))
    facts = [
        f"for MODEL.BACKBONE.NAME {found.backbone} and MODEL.OPEN_VOCAB.EMBED_DIM "
        f"{found.embed_dim}; the text encoder is CLIP ViT-B/32 (512), RN50x4 (640) or RN50x16 (768)"
    ]
    if found.has_regulariser:
        facts.append(
            "it has a regulariser: its KIND, DEPTH and ACTIVATION (MODEL.LSEG.REGULARISER) are "
            "not in the file"
        )
    if found.left_out:
        facts.append(f"left out, for nothing here reads them: {', '.join(_shown(found.left_out))}")
    write_state_dict(str(out), found.weights)
    return Conversion(len(found.weights), tuple(facts))


def convert_to_lseg(source: Path, out: Path) -> Conversion:
    """Our checkpoint as LSeg's, under "state_dict"; arguments and errors as for
    :func:`convert_lseg`."""
    _check_paths(source, out)
    weights = to_lseg(read_state_dict(str(source)))
    write_state_dict(str(out), weights, under="state_dict")
    facts = (
        "without CLIP (clip_pretrained), which their code loads itself: load it with strict=False",
        "what their network does not read is 0, norms 1 and 0",
    )
    return Conversion(len(weights), facts)


def _shown(names: tuple[str, ...]) -> list[str]:
    """Names, those of CLIP as one."""
    clip = [name for name in names if "clip_pretrained." in name]
    rest = [name for name in names if name not in set(clip)]
    return [
        *(
            [f"{clip[0].partition('clip_pretrained.')[0]}clip_pretrained.* ({len(clip)})"]
            if clip
            else []
        ),
        *rest,
    ]


def _check_paths(
    source: Path, out: Path, embeddings: Path | None = None, vocabulary: str = ""
) -> None:
    """Raises OVDError, before anything is written, for names that cannot be written."""
    check_weights_name(str(out))
    if embeddings is not None and embeddings.suffix != ".safetensors":
        raise OVDError(f"--embeddings {embeddings} must end in .safetensors.")
    named = [source, *([vocabulary] if vocabulary else [])]
    check_output("--out", out)
    if embeddings is not None:
        check_output("--embeddings", embeddings, named)
        check_output("the manifest of --embeddings", manifest_path(embeddings), [*named, out])
    paths = [path.resolve() for path in (source, out, embeddings) if path is not None]
    if len(set(paths)) < len(paths):
        raise OVDError(
            f"FILE, --out and --embeddings must differ: nothing is written over {source.name} or "
            "one another."
        )


def _write_embeddings(
    path: Path | None, rows: Tensor, counts: Tensor | None, vocabulary: str, encoder: str
) -> list[str]:
    """Writes the embeddings with names and counts; says what became of them."""
    num_classes, dim = rows.shape
    left_out = f"left out the class embeddings of {num_classes} classes"
    if path is None:
        return [
            f"{left_out}, which it was trained with, and their frequencies: --embeddings FILE "
            "writes them, and MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS FILE evaluates with them"
        ]
    manifest = {"encoder_id": text_encoder_id(encoder)}
    if vocabulary:
        names = Vocabulary.load(vocabulary).names
        _check_count(len(names), num_classes, vocabulary)
        manifest["names"] = list(names)
    if counts is not None:
        manifest["image_counts"] = counts.tolist()
    try:
        write_embedding_file(path, rows, manifest)
    except OSError as error:
        raise OVDError(f"--embeddings {path} cannot be written ({error}).") from error
    return [
        f"wrote the class embeddings ({num_classes}, {dim}), to evaluate with: "
        f"MODEL.OPEN_VOCAB.TEXT_EMBEDDINGS {path}"
    ]


def _check_count(num_names: int, num_rows: int, vocabulary: str) -> None:
    if num_names != num_rows:
        raise OVDError(
            f"--vocabulary {vocabulary} has {num_names} names, but there are {num_rows} class "
            "embeddings: give the vocabulary that the checkpoint was trained with."
        )


def _as_counts(counts: object) -> Tensor | None:
    if not counts:
        return None
    try:
        return torch.tensor(counts, dtype=torch.long)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OVDError(f"image_counts of the embeddings' manifest: {error}") from error
