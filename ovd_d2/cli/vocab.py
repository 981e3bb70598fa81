"""``ovd vocab``: what is known about words."""

from pathlib import Path

import typer

from ovd_d2.errors import OVDError

from .predict import ALONE, _silence_torch
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


_MODEL = typer.Option("", help="As --model of `ovd predict`; default: mini.")
_YAML = typer.Option(None, help="The yaml a model was trained with, instead of --model.")
_LABELLED = typer.Option(..., help="A registered data set with boxes, such as mini_v1_val.")
_THRESHOLDS = typer.Option(..., help="The .json file to write, for `ovd predict --thresholds`.")
_TEST = typer.Option("", help="Another one, of the same names, on which to measure them, too.")
_IMAGES = typer.Option(None, min=1, help="The first so many images of each; default: all.")
_MIN_EXAMPLES = typer.Option(
    5, min=0, help="Names with fewer objects have the threshold of all names together."
)
_PRIOR = typer.Option(
    10.0, min=0, help="So many average objects count beside a name's own; 0: its own alone."
)
_DEVICE = typer.Option(None, help="cpu, cuda, cuda:1, ...; default: a GPU if there is one.")


@app.command()
def calibrate(
    dataset: str = _LABELLED,
    out: Path = _THRESHOLDS,
    model: str = _MODEL,
    config_file: Path | None = _YAML,
    weights: str = typer.Option("", help="Checkpoint for --config-file."),
    test_dataset: str = _TEST,
    images: int | None = _IMAGES,
    min_examples: int = _MIN_EXAMPLES,
    prior: float = _PRIOR,
    device: str | None = _DEVICE,
    batch_size: int = typer.Option(4, min=1, help="Images that go through the model together."),
    registered: list[str] = REGISTER,
) -> None:
    """Choose a score threshold for every name, by the best F1 on a labelled data set."""
    from ovd_d2.inference.opening import check_model_choice, open_predictor

    check_model_choice(model, config_file, weights)
    if out.suffix.lower() != ".json":
        raise OVDError(f"--out {out}: end the name in .json")
    from tqdm import tqdm

    import ovd_d2
    from ovd_d2.files.atomic import check_output
    from ovd_d2.inference.calibration import calibrate_names, number_of_images
    from ovd_d2.inference.model_folders import DEFAULT_MODEL

    ovd_d2.register()
    check_output("--out", out, [file for file in (config_file, weights) if file])
    total = number_of_images([name for name in (dataset, test_dataset) if name], images)
    predictor = open_predictor(model, config_file, weights, device=device, batch_size=batch_size)
    with tqdm(total=total, unit="image", delay=5, disable=None) as bar:
        content = calibrate_names(
            predictor, dataset, out, test_dataset=test_dataset, images=images,
            min_examples=min_examples, prior=prior, on_image=bar.update,
            info={"model": model or str(config_file or DEFAULT_MODEL)},
        )  # fmt: skip
    for name, rows in content["f1"].items():
        for kind, row in rows.items():
            kind = f"one threshold ({content['pooled']:g})" if kind == "one threshold" else kind
            print(f"{name}, {kind}: F1 {row['F1']:.1f}, mean of names {row['F1_names']:.1f}")
    own, names = len(content["of_their_own"]), len(content["thresholds"])
    print(f"{out}: {own} of {names} names have {min_examples} examples or more")


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
    alone: bool = ALONE,
    registered: list[str] = REGISTER,
) -> None:
    """Embed names as a model does, for a graph of `ovd export` whose classes are an input."""
    import ovd_d2
    from ovd_d2.inference.class_embedding_files import check_embedding_output, embed_names

    ovd_d2.register()
    check_embedding_output("--out", out)
    options = {"model": model, "config_file": config_file, "weights": weights, "alone": alone}
    rows, competitors = embed_names(names, out, **options)
    count = f"{len(rows) - competitors} names"
    count += f" and {competitors} that compete" if competitors else ""
    print(f"{out}: {count}, {rows.dim} numbers each, by {rows.encoder_id}")


_EXAMPLES = typer.Argument(..., metavar="EXAMPLES.json", help="Boxes on images, by class name.")
_PROFILE = typer.Option(..., help="The .safetensors file to write; its manifest goes beside it.")
_SEEN_BY = typer.Option(
    "model", help="What sees the examples: the model, or (crop) the image tower of its encoder."
)


@app.command()
def learn(
    examples: Path = _EXAMPLES,
    out: Path = _PROFILE,
    model: str = _MODEL,
    config_file: Path | None = _YAML,
    weights: str = typer.Option("", help="Checkpoint for --config-file."),
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
    from ovd_d2.inference.opening import check_model_choice, open_predictor

    check_model_choice(model, config_file, weights)
    ovd_d2.register()
    _silence_torch()
    wanted = ByExamples(examples, seen_by).checked()
    if wanted.profile is not None:
        raise OVDError(f"{examples} is a profile already: give a .json of examples.")
    check_profile_path(out, [examples, *wanted.files()])
    predictor = open_predictor(model, config_file, weights, vocabulary=wanted, device=device)
    write_profile(predictor, wanted, out)
    counts = [count for count in wanted.counts().values() if count]
    print(
        f"{out}: {len(predictor.vocabulary)} classes, {len(counts)} of them by {sum(counts)} "
        "examples"
    )
