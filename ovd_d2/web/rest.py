"""The REST endpoints: pictures in, json out."""

import logging
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from ovd_d2 import __version__
from ovd_d2.errors import OVDError
from ovd_d2.files.images import UnreadableImageError

from .limits import BusyError, TooLargeError
from .served_model import Answer, ServedModel

logger = logging.getLogger(__name__)
STATUS = {TooLargeError: 413, UnreadableImageError: 415, BusyError: 503}  # else 422
_UPLOAD = File(description="An image file.")
_THRESHOLD = Form(ge=0, le=1, description="Least score; left out: the model's own.")
_TOPK = Form(ge=1, le=1000, description="Detections at most, the best.")
_MODEL = Form(description="One of /v1/models; left out: the first.", max_length=200)
_NAMES = Form(description='"cat, red mug"; left out: what the model was trained on.')
_ALONE = Form(description="True: the other names of the training do not compete.")
_CAPTION = Form(description='"a cat on a red chair".')


class Problem(BaseModel):
    """What is wrong, and what to do."""

    error: str


class Model(BaseModel):
    """A model that is served."""

    name: str
    threshold: float
    least_threshold: float
    topk: int
    reads_captions: bool
    classes: int
    learned_from: str


class Models(BaseModel):
    """All of them, the default first."""

    models: list[Model]


class Detections(BaseModel):
    """R detections, best first; boxes are x0, y0, x1, y1 in pixels of the image as a viewer shows
    it. ``shares`` is what label maps have instead: name -> share of the pixels."""

    model: str
    width: int
    height: int
    names: list[str]
    scores: list[float]
    boxes: list[list[float]]
    shares: dict[str, float]


class Health(BaseModel):
    """That the server answers."""

    status: str
    version: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 404, 413, 415, 422, 503)
}


def build_rest(served: Mapping[str, ServedModel]) -> FastAPI:
    """The app with its endpoints.

    Args:
        served: title -> model, the default first.
    """
    app = FastAPI(title="ovd serve", version=__version__, docs_url=None, redoc_url=None)
    _say_errors(app)

    @app.get("/healthz")
    def healthz() -> Health:
        """Whether the server answers."""
        return Health(status="ok", version=__version__)

    @app.get("/v1/models")
    def models() -> Models:
        """What is served."""
        return Models(models=[Model(**model.facts) for model in served.values()])

    @app.post("/v1/predict", responses=PROBLEMS)
    def predict(
        file: Annotated[UploadFile, _UPLOAD],
        names: Annotated[str, _NAMES] = "",
        alone: Annotated[bool, _ALONE] = False,
        threshold: Annotated[float | None, _THRESHOLD] = None,
        topk: Annotated[int | None, _TOPK] = None,
        model: Annotated[str, _MODEL] = "",
    ) -> Detections:
        """Finds names in an image."""
        chosen, content = _chosen(served, model), file.file.read()
        return _detections(chosen.detect(content, names, threshold, topk, alone=alone))

    @app.post("/v1/ground", responses=PROBLEMS)
    def ground(
        file: Annotated[UploadFile, _UPLOAD],
        caption: Annotated[str, _CAPTION],
        threshold: Annotated[float | None, _THRESHOLD] = None,
        topk: Annotated[int | None, _TOPK] = None,
        model: Annotated[str, _MODEL] = "",
    ) -> Detections:
        """Finds the phrases of a caption in an image; for models that read captions."""
        chosen, content = _chosen(served, model), file.file.read()
        return _detections(chosen.ground(content, caption, threshold, topk))

    return app


def _chosen(served: Mapping[str, ServedModel], name: str) -> ServedModel:
    if name and name not in served:
        raise HTTPException(404, f"There is no model {name[:40]!a}: use {', '.join(served)}.")
    return served[name] if name else next(iter(served.values()))


def _detections(answer: Answer) -> Detections:
    height, width = answer.prediction.image.shape[:2]
    rows = answer.rows()
    return Detections(
        model=answer.model,
        width=width,
        height=height,
        names=[name for _, name, _, _ in rows],
        scores=[score for _, _, score, _ in rows],
        boxes=[box for _, _, _, box in rows],
        shares={answer.names[k]: share for k, share in answer.shares().items()},
    )


def _say_errors(app: FastAPI) -> None:
    """Every error is json with one sentence, ``{"error": ...}``."""

    def answer(status: int, sentence: str) -> JSONResponse:
        sentence = sentence.encode("utf-8", "replace").decode()
        headers = {"retry-after": "2"} if status == 503 else None
        return JSONResponse({"error": sentence}, status_code=status, headers=headers)

    def of_user(_request: Request, error: OVDError) -> JSONResponse:
        return answer(STATUS.get(type(error), 422), str(error))

    def of_form(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or "request"
        return answer(422, f"The field {field[:40]} cannot be used: {first['msg']}.")

    def of_http(_request: Request, error: StarletteHTTPException) -> JSONResponse:
        return answer(error.status_code, str(error.detail))

    def unexpected(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s failed", request.url.path, exc_info=error)
        return answer(500, "The server failed; its log says how.")

    handlers: dict[type[Exception], Callable] = {
        OVDError: of_user,
        RequestValidationError: of_form,
        StarletteHTTPException: of_http,
        Exception: unexpected,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
