"""``ovd vocab``: what is known about words."""

from pathlib import Path

import typer

from ovd_d2.errors import OVDError

from .predict import _silence_torch
from .register_option import REGISTER

app = typer.Typer(help="Concepts: their names and definitions.", no_args_is_help=True)
_OUT = typer.Option(..., help="The .json file to write.")
_NAMES = typer.Option([], help="Label set: dataset:NAME, or a .txt or .json file; may be repeated.")
_CAPTIONS = typer.Option(
    [],
    help="Data set whose captions give noun phrases: pairs:PATH, grounding:FOLDER:FILE.json, or a "
    "registered one; may be repeated.",
)
_DEFINITIONS = typer.Option(
    "",
    help="Definitions of names that have none: lvis, imagenet21k, wordnet, dataset:NAME, a file of "
    "this command, or several with + between.",
)
_NOUN_PHRASES = typer.Option(
    "auto", help="auto (spaCy where it is installed), stop-words, or a pipeline of spaCy."
)


@app.callback()
def vocab() -> None:
    """Concepts: their names and definitions."""


@app.command()
def dictionary(
    out: Path = _OUT,
    names: list[str] = _NAMES,
    captions: list[str] = _CAPTIONS,
    definitions: str = _DEFINITIONS,
    noun_phrases: str = _NOUN_PHRASES,
    min_count: int = typer.Option(2, min=1, help="Leave out phrases that fewer captions have."),
    registered: list[str] = REGISTER,
) -> None:
    """Gather a concept dictionary (DetCLIP) from label sets and captions."""
    import ovd_d2
    from ovd_d2.jobs.build_concept_dictionary import DictionarySettings, build_concept_dictionary

    settings = DictionarySettings(
        out, tuple(names), tuple(captions), definitions, noun_phrases, min_count
    )
    ovd_d2.register()
    report = build_concept_dictionary(settings)
    print(f"{out}: {report.concepts} concepts, {report.defined} with a definition")
    if names:
        print(f"{report.of_label_sets} are names or synonyms of label sets")
    if captions:
        print(
            f"{report.kept} of {report.phrases} noun phrases are in at least {min_count} of "
            f"{report.captions} captions; {report.without_phrase} captions have none"
        )
        frequent = ", ".join(f"{phrase} ({count})" for phrase, count in report.most_frequent)
        print(f"most frequent: {frequent or 'none'}")


_EXAMPLES = typer.Argument(..., metavar="EXAMPLES.json", help="Boxes on images, by class name.")
_PROFILE = typer.Option(..., help="The .safetensors file to write; its manifest goes beside it.")
_MODEL = typer.Option("", help="As of `ovd predict`; default: mini.")
_CONFIG = typer.Option(None, help="The yaml a model was trained with, instead of --model.")
_WEIGHTS = typer.Option("", help="Checkpoint for --config-file.")
_SEEN_BY = typer.Option(
    "model", help="What sees the examples: the model, or (crop) the image tower of its encoder."
)
_DEVICE = typer.Option(None, help="cpu, cuda, cuda:1, ...; default: a GPU if there is one.")


@app.command()
def learn(
    examples: Path = _EXAMPLES,
    out: Path = _PROFILE,
    model: str = _MODEL,
    config_file: Path | None = _CONFIG,
    weights: str = _WEIGHTS,
    seen_by: str = _SEEN_BY,
    device: str | None = _DEVICE,
    registered: list[str] = REGISTER,
) -> None:
    """Keep what a model sees in example boxes, for `ovd predict --examples`."""
    import ovd_d2
    from ovd_d2.inference.example_vocabulary import (
        ByExamples,
        check_profile_path,
        write_profile,
    )
    from ovd_d2.inference.model_folders import DEFAULT_MODEL
    from ovd_d2.inference.predictor import OpenVocabPredictor

    if model and config_file:
        raise OVDError("--model and --config-file exclude each other.")
    if weights and not config_file:
        raise OVDError("--weights needs the --config-file they were trained with.")
    ovd_d2.register()
    _silence_torch()
    wanted = ByExamples(examples, seen_by).checked()
    if wanted.profile is not None:
        raise OVDError(f"{examples} is a profile already: give a .json of examples.")
    check_profile_path(out, [examples, *wanted.files()])
    options = {"vocabulary": wanted, "device": device}
    if config_file:
        predictor = OpenVocabPredictor(config_file, weights, **options)
    else:
        predictor = OpenVocabPredictor.from_pretrained(model or DEFAULT_MODEL, **options)
    write_profile(predictor, wanted, out)
    counts = [count for count in wanted.counts().values() if count]
    print(
        f"{out}: {len(predictor.vocabulary)} classes, {len(counts)} of them by {sum(counts)} "
        "examples"
    )
