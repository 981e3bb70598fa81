"""``ovd ground``: where are the things of a caption?"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ovd_d2.errors import OVDError

from .register_option import REGISTER

if TYPE_CHECKING:
    from ovd_d2.inference.grounding import Grounding

_IMAGE = typer.Argument(..., metavar="IMAGE", help="An image file.")
_CAPTION = typer.Argument(..., metavar="CAPTION", help='"a cat on a red chair".')
_MODEL = typer.Option(
    "",
    help="A model of the zoo, a folder `ovd export` wrote, or hf: and a Grounding DINO or "
    "MM-Grounding-DINO of transformers (name or folder).",
)
_YAML = typer.Option(
    None, help="The yaml of a GLIP, DetCLIP or Grounding DINO, instead of --model."
)
_OUT = typer.Option(Path("output/ground.jpg"), help="The picture to write.")
_PHRASES = typer.Option(
    [], "--phrase", help="What to look for, words of the caption (repeatable); default: its nouns."
)
_THRESHOLD = typer.Option(0.3, min=0, max=1, help="Drop what scores less.")
_PER_PHRASE = typer.Option(None, min=1, help="Most boxes of a phrase, the best; default: all.")
_TOPK = typer.Option(None, min=1, help="Boxes; default: the config's.")


def command(
    image: Path = _IMAGE,
    caption: str = _CAPTION,
    model: str = _MODEL,
    config_file: Path | None = _YAML,
    weights: str = typer.Option("", help="Checkpoint for --config-file."),
    phrases: list[str] = _PHRASES,
    out: Path = _OUT,
    json_file: Path | None = typer.Option(None, "--json", help="Phrases and boxes as json."),
    score_threshold: float = _THRESHOLD,
    per_phrase: int | None = _PER_PHRASE,
    topk: int | None = _TOPK,
    device: str | None = typer.Option(None, help="cpu, cuda, ...; default: a GPU if there is one."),
    registered: list[str] = REGISTER,
) -> None:
    """Draw the boxes of a caption's phrases, each in the colour of its words."""
    if bool(model) == bool(config_file):
        raise OVDError("give either --model FOLDER or --config-file YAML with --weights.")
    from PIL import Image

    from ovd_d2 import register

    register()
    from ovd_d2.files.atomic import check_output, check_picture, write_json, write_picture
    from ovd_d2.inference.opening import check_model_choice, open_predictor
    from ovd_d2.visualization.grounding import draw_grounding

    check_model_choice(model, config_file, weights)
    check_picture("--out", out, [image])
    if json_file is not None:
        check_output("--json", json_file, [image])
    spans = [_place(caption, phrase) for phrase in phrases] or None
    predictor = open_predictor(
        model, config_file, weights, device=device, score_threshold=score_threshold, topk=topk
    )
    found = predictor.ground(image, caption, spans)
    if per_phrase is not None:
        found = found.best(per_phrase)
    drawn = draw_grounding(found.image, found.caption, found.instances)
    write_picture(Image.fromarray(drawn), out)
    words = found.caption.phrases()
    for number, word in enumerate(words):
        boxes = found.instances[found.instances.pred_classes == number]
        scores = ", ".join(f"{score:.2f}" for score in boxes.scores[:5].tolist())
        print(f"{word}: {f'{len(boxes)} ({scores})' if scores else 'nothing'}")
    if json_file is not None:
        write_json(json_file, _content(image, found))
    print(f"{out}{f'; {json_file}' if json_file else ''}")


def _place(caption: str, phrase: str) -> tuple[int, int]:
    found = re.search(re.escape(phrase), caption, re.IGNORECASE) if phrase else None
    if found is None:
        raise OVDError(f"--phrase {phrase!r} is not in the caption {caption!r}.")
    return found.span()


def _content(image: Path, found: "Grounding") -> dict[str, Any]:
    """What --json writes."""
    rows = zip(
        found.instances.pred_boxes.tensor.tolist(),
        found.instances.scores.tolist(),
        found.instances.pred_classes.tolist(),
    )
    return {
        "image": str(image),
        "caption": found.caption.caption,
        "phrases": [
            {"text": text, "spans": [list(span) for span in spans]}
            for text, spans in zip(found.caption.phrases(), found.caption.spans)
        ],
        "boxes": [{"box_xyxy": box, "score": s, "phrase": p} for box, s, p in rows],
    }
