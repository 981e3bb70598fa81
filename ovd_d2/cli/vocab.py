"""``ovd vocab``: what is known about words."""

from pathlib import Path

import typer

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


@app.command()
def embed(
    names: str = typer.Argument(
        ..., metavar="NAMES", help='"cat, red mug", a .txt or .json file, or dataset:NAME.'
    ),
    out: Path = typer.Option(..., help="The .safetensors file to write."),
    model: str = typer.Option(
        "", help="Whose encoder embeds them, as for `ovd predict`; default: mini."
    ),
    config_file: Path | None = typer.Option(
        None, help="The yaml a model was trained with, instead of --model."
    ),
    weights: str = typer.Option("", help="Checkpoint for --config-file."),
    registered: list[str] = REGISTER,
) -> None:
    """Embed names as a model does, for a graph of `ovd export` whose classes are an input."""
    import ovd_d2
    from ovd_d2.inference.class_embedding_files import check_embedding_output, embed_names

    ovd_d2.register()
    check_embedding_output("--out", out)
    rows = embed_names(names, out, model=model, config_file=config_file, weights=weights)
    print(f"{out}: {len(rows)} names, {rows.dim} numbers each, by {rows.encoder_id}")
