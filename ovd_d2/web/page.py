"""The page: a picture and names in, boxes out."""

import html
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from PIL import Image

from ovd_d2.errors import OVDError
from ovd_d2.visualization.detections import class_colour
from ovd_d2.visualization.label_maps import map_colour, percent

from .limits import Limits
from .served_model import Answer, Example, ServedModel

logger = logging.getLogger(__name__)
TITLE = "Find what you name"
MAX_SIDE = 1600  # pixels of a drawn picture
ROWS = 100  # of the table
_FONTS = ("system-ui", "sans-serif")  # those of the browser: none is fetched
_SWEEP, _KEEP = 60, 1800  # seconds: how often uploads are looked at, and how long they are kept
_CSS = """
.gradio-container {max-width: 1240px !important; width: 100% !important; margin: auto}
.drawn img {max-height: 62vh; object-fit: contain}
.table.table {padding: 0}
.found {max-height: 320px; overflow-y: auto; background: var(--block-background-fill);
 border-radius: 8px}
.found table {width: 100%; border: 0 !important; border-collapse: collapse; margin: 0;
 font-size: 14px}
.found tr, .found thead, .found tbody {border: 0 !important}
.found .row td, .found .row th {padding: 6px 10px; text-align: left; overflow-wrap: anywhere;
 border: 0; border-bottom: 1px solid var(--border-color-primary)}
.found .row > :last-child {text-align: right; width: 5em}
.found i {display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px}
.nothing {padding: 6px 2px; color: var(--body-text-color-subdued)}
"""


def mount_page(
    app: FastAPI, served: Mapping[str, ServedModel], limits: Limits, folder: Path
) -> FastAPI:
    """``app`` with the page at "/".

    Args:
        app: has routes of its own, which come first.
        served: title -> model, the default first.
        limits: what a request may ask for.
        folder: of the uploads, which GRADIO_TEMP_DIR names.
    """
    import gradio as gr

    gr.routes.print = logger.debug  # it prints a line for every file of the box drawer
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(_SWEEP, _KEEP), fill_width=True
    ) as blocks:
        gr.Markdown(f"## {TITLE}")
        with gr.Tabs():
            with gr.Tab("Find"):
                _find_tab(served, limits)
            readers = {title: model for title, model in served.items() if model.reads_captions}
            if readers:
                with gr.Tab("Ground"):
                    _ground_tab(readers, limits)
    blocks.queue(max_size=(1 + limits.waiting) * len(served), api_open=False)
    for block in blocks.blocks.values():
        block.async_move_resource_to_block_cache = _uploads_only(block, folder)
    font = {"font": _FONTS, "font_mono": ("ui-monospace", "monospace")}
    return gr.mount_gradio_app(
        app, blocks, "",
        theme=gr.themes.Soft(primary_hue="blue", **font),
        css=_CSS,
        max_file_size=limits.bytes,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        show_error=False,
    )  # fmt: skip


def _uploads_only(block: Any, folder: Path) -> Callable:
    """Instead of gradio's: a value that names a file names one in ``folder``. (The original copies
    any file and fetches any address that a request names, when the page is mounted.)"""
    import gradio as gr

    root = folder.resolve()

    async def move(path: str | Path | None) -> str | None:
        if path is None:
            return None
        found = _inside(path, root)
        if found is None:
            raise gr.Error("Upload the image: no path and no address.", print_exception=False)
        block.temp_files.add(str(found))
        return str(found)

    return move


def _inside(path: str | Path, root: Path) -> Path | None:
    try:
        found = Path(path).resolve()
        return found if found.is_relative_to(root) and found.is_file() else None
    except (OSError, ValueError):  # too long, a NUL
        return None


def _path(payload: Any) -> str | None:
    """An upload as it is: gradio would decode it, whatever its size."""
    return None if payload is None else payload.path


def _picture(label: str) -> Any:
    import gradio as gr

    made = gr.Image(
        label=label, type="filepath", sources=["upload", "clipboard"], height=340,
        elem_id=label.lower().replace(" ", "-"),
    )  # fmt: skip
    made.preprocess = _path
    return made


def _example_inputs() -> tuple[Any, Any]:
    import gradio as gr
    from gradio_image_annotation import image_annotator

    gr.Markdown("Upload a picture of what you look for, and draw a box around it.")
    drawn = image_annotator(
        label="Example", sources=["upload", "clipboard"], disable_edit_boxes=True,
        show_download_button=False, show_remove_button=True, use_default_label=True,
        label_list=["example"], height=280, elem_id="example",
    )  # fmt: skip
    drawn.preprocess = lambda payload: None if payload is None else payload.model_dump()
    name = gr.Textbox(label="What it is called", value="like the example", max_length=200)
    return drawn, name


def _find_tab(served: Mapping[str, ServedModel], limits: Limits) -> None:
    import gradio as gr

    first = next(iter(served.values()))
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            picture = _picture("Picture")
            names = gr.Textbox(
                label="Names", placeholder="cat, red mug", lines=2, elem_id="names",
                info="Between commas; left empty: what the model was trained on.",
                max_length=limits.names * (limits.characters + 1),
            )  # fmt: skip
            alone = gr.Checkbox(
                label="Only these names", elem_id="alone",
                info="Else the other names that the model was trained with compete.",
                visible=any(model.names_compete for model in served.values()),
            )  # fmt: skip
            threshold = _threshold_slider(first)
            with gr.Accordion("Find by example", open=False):
                drawn, called = _example_inputs()
            go = gr.Button("Find", variant="primary", elem_id="find")
        inputs = [picture, names, threshold, drawn, called, alone]
        with gr.Column(scale=3, min_width=300), gr.Row():
            for title, model in served.items():
                with gr.Column(min_width=280):
                    outputs = _outputs(title)
                triggers = [go.click, names.submit, picture.upload]
                _connect(title, model, _find, triggers, threshold.release, inputs, outputs)


def _ground_tab(served: Mapping[str, ServedModel], limits: Limits) -> None:
    import gradio as gr

    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            picture = _picture("Picture to ground")
            caption = gr.Textbox(
                label="Caption", placeholder="a cat on a red chair", max_length=limits.caption,
                elem_id="caption",
            )  # fmt: skip
            threshold = _threshold_slider(next(iter(served.values())))
            go = gr.Button("Ground", variant="primary", elem_id="ground")
        with gr.Column(scale=3, min_width=300), gr.Row():
            for title, model in served.items():
                with gr.Column(min_width=280):
                    outputs = _outputs(title)
                _connect(
                    title, model, ServedModel.ground, [go.click, caption.submit],
                    threshold.release, [picture, caption, threshold], outputs,
                )  # fmt: skip


def _connect(
    title: str,
    model: ServedModel,
    ask: Callable[..., Answer],
    triggers: list[Any],
    slider: Any,
    inputs: list[Any],
    outputs: list[Any],
) -> None:
    """Asks the model on every trigger; the slider asks only once there is a picture."""
    import gradio as gr

    for events, quiet in ((triggers, False), ([slider], True)):
        gr.on(
            events, _answering(model, ask, quiet), inputs, outputs, trigger_mode="always_last",
            concurrency_limit=1, concurrency_id=title, api_visibility="private",
        )  # fmt: skip


def _threshold_slider(model: ServedModel) -> Any:
    import gradio as gr

    return gr.Slider(
        model.least_threshold, 1, value=model.threshold, step=0.01, label="Least score",
        elem_classes="threshold",
    )  # fmt: skip


def _outputs(title: str) -> list[Any]:
    import gradio as gr

    drawn = gr.Image(
        label=title, type="pil", format="png", interactive=False, min_width=280,
        buttons=["download", "fullscreen"], elem_classes="drawn",
    )  # fmt: skip
    table = gr.HTML("", elem_classes="table")
    file = gr.DownloadButton("Download json", size="sm", interactive=False)
    return [drawn, table, file]


def _find(
    model: ServedModel,
    content: bytes,
    names: str,
    threshold: float,
    drawn: dict[str, Any] | None,
    called: str,
    alone: bool,
) -> Answer:
    return model.detect(content, names, threshold, example=_example(drawn, called), alone=alone)


def _example(drawn: dict[str, Any] | None, called: str) -> Example | None:
    """What was drawn; None without a box."""
    if drawn is None or not drawn["boxes"]:
        return None
    try:
        boxes = [
            tuple(
                box[side] / box.get("scaleFactor", 1) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            for box in drawn["boxes"]
        ]
    except (KeyError, TypeError, ZeroDivisionError, AttributeError):
        raise OVDError("The boxes of the example cannot be used: draw them again.") from None
    content = _content(drawn["image"]["path"])
    return Example(called.strip(), content, boxes, turns=drawn["orientation"])


def _content(path: str) -> bytes:
    """Of an upload, and of no other file."""
    from gradio.utils import get_upload_folder

    found = _inside(path, Path(get_upload_folder()).resolve())
    if found is None:
        raise OVDError("The upload is no longer here: upload it again.")
    return found.read_bytes()


def _answering(
    model: ServedModel, ask: Callable[..., Answer], quiet: bool
) -> Callable[..., list[Any]]:
    """What an event of the page calls: inputs -> outputs, and one sentence for what is wrong;
    ``quiet``: nothing happens without a picture."""
    import gradio as gr

    def answer(picture: str | None, words: str, *options: Any) -> list[Any]:
        if picture is None and quiet:
            return [gr.skip()] * 3
        if picture is None:
            raise gr.Error("Drop an image first.", print_exception=False)
        try:
            found = ask(model, _content(picture), words or "", *options)
        except OVDError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from None
        return _shown(found)

    return answer


def _shown(answer: Answer) -> list[Any]:
    import gradio as gr
    from gradio.processing_utils import save_bytes_to_cache
    from gradio.utils import get_upload_folder

    drawn = Image.fromarray(answer.drawn())
    drawn.thumbnail((MAX_SIDE, MAX_SIDE))
    content = json.dumps(answer.coco(), indent=1).encode()
    path = save_bytes_to_cache(content, "predictions.json", get_upload_folder())
    return [drawn, _table(answer), gr.DownloadButton(value=path, interactive=True)]


def _table(answer: Answer) -> str:
    """The rows as HTML; names are escaped."""
    shares = answer.shares()
    if shares:
        rows = [
            (map_colour(k, answer.names), answer.names[k], percent(s)) for k, s in shares.items()
        ]
    else:
        rows = [(class_colour(k), name, f"{score:.2f}") for k, name, score, _ in answer.rows()]
    if not rows:
        return '<p class="nothing">Nothing found: lower the least score, or use other names.</p>'
    body = "".join(
        _row(_swatch(colour) + html.escape(name), value) for colour, name, value in rows[:ROWS]
    )
    more = len(rows) - ROWS
    note = f'<p class="nothing">{more} more are in the json.</p>' if more > 0 else ""
    head = _row(f"{len(rows)} found", "share" if shares else "score", cell="th")
    return f'<div class="found"><table>{head}{body}</table></div>{note}'


def _row(first: str, second: str, cell: str = "td") -> str:
    return f'<tr class="row"><{cell}>{first}</{cell}><{cell}>{second}</{cell}></tr>'


def _swatch(colour: tuple[int, int, int]) -> str:
    return f'<i style="background: rgb{colour}"></i>'
