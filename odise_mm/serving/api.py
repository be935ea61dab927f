"""The HTTP API: images and class names in, results out."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi_offline import FastAPIOffline
from mmengine.logging import print_log
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException

from odise_mm.config.walking import name_of
from odise_mm.errors import VocabularyError
from odise_mm.models.postprocess import WEIGHTS
from odise_mm.serving.answers import Answer, Output, make_answer
from odise_mm.serving.guard import Guard
from odise_mm.serving.label_studio import ImageStore
from odise_mm.serving.ml_backend import add_ml_backend
from odise_mm.serving.service import Service
from odise_mm.serving.uploads import INTERNAL_ERROR, MAX_TEXT, decode_base64, parse_names
from odise_mm.utils.display import printable
from odise_mm.version import __version__

_FORM_BYTES = 1 << 20  # everything in a request but the image
_RESULTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The result",
        "content": {"application/json": {}, "image/png": {}},
    }
}


class Options(BaseModel):
    """Class names and settings of a request."""

    model_config = ConfigDict(extra="forbid")

    texts: str | None = Field(
        None,
        max_length=MAX_TEXT,
        description="Names of things: ';' separates classes, ',' separates synonyms. Names of "
        "built-in vocabularies (coco, ade20k, lvis, ...) work as well. Default: the server's names",
        examples=["delivery van, van; cyclist"],
    )
    stuff_texts: str | None = Field(
        None,
        max_length=MAX_TEXT,
        description="Names of stuff (sky, road, ...), in the same format",
        examples=["cobblestone; sky"],
    )
    vocabulary: str | None = Field(
        None,
        max_length=MAX_TEXT,
        description="Built-in vocabularies, separated by commas, in addition to the names",
    )
    output: Output = Field(
        "coco",
        description="`coco`: COCO's instance format, all segments as run-length encoded masks. "
        "`panoptic`: COCO's panoptic format, with its PNG file in base64. `map`: that PNG file; "
        "pixels are R + 256 G + 65536 B = segment id, or 0. `drawing`: the drawn segments, PNG",
    )
    score_threshold: float | None = Field(
        None, ge=0, le=1, description="Drop segments whose class probability is not above this"
    )
    overlap_threshold: float | None = Field(
        None, ge=0, le=1, description="Drop masks that keep less than this part of their area"
    )
    min_area: int | None = Field(None, ge=0, description="Drop segments with fewer pixels")
    alpha: float | None = Field(
        None, ge=0, le=1, description="Weight of CLIP's prediction for base classes"
    )
    beta: float | None = Field(
        None, ge=0, le=1, description="Weight of CLIP's prediction for novel classes"
    )
    memory_weight: float | None = Field(
        None, ge=0, le=1, description="Factor on the weights of the memory's prediction"
    )
    legend: bool = Field(False, description="Add a legend to the drawing")

    def settings(self) -> dict[str, Any]:
        """Return the given settings of results, which are arguments of the inferencer."""
        names = ("score_threshold", "overlap_threshold", "min_area", *WEIGHTS)
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class _Upload(BaseModel):
    image: UploadFile = Field(description="File of the image")


class _Encoded(BaseModel):
    image: str = Field(description="File of the image in base64, or as a data URL")


class FormRequest(Options, _Upload):  # the image comes first in the description
    """A request with the image as a file. Empty fields, as browsers send them, count as missing."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value != ""}


_Form = Annotated[FormRequest, Form(media_type="multipart/form-data")]


class JsonRequest(Options, _Encoded):
    """A request with the image in base64."""


class Problem(BaseModel):
    """Why there is no result."""

    error: str


def make_app(service: Service, images: ImageStore | None = None) -> FastAPI:
    """Return the ASGI application of a service, which closes the service when it ends.

    Args:
        service: The model.
        images: Images of Label Studio, to be its ML backend, too.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    # Its pages need no internet: FastAPI's own would load scripts from elsewhere.
    app = FastAPIOffline(
        redoc_url=None,
        title="odise_mm",
        version=__version__,
        summary="Open-vocabulary panoptic segmentation",
        lifespan=lifespan,
        responses={code: {"model": Problem} for code in (408, 413, 422, 429, 500, 503)},
    )
    app.add_middleware(
        Guard,
        max_body=4 * service.limits.max_bytes // 3 + _FORM_BYTES,  # base64 takes 4/3
        max_active=service.max_active,
        timeout=service.timeout,
        count=service.metrics.count,
        show_active=service.metrics.active.set,
    )
    _add_errors(app)
    _add_images(app, service)
    _add_states(app, service)
    if images is not None:
        add_ml_backend(app, service, images)
    service.metrics.paths = set(app.openapi()["paths"])
    return app


def _add_images(app: FastAPI, service: Service) -> None:
    """Add the paths that segment images."""

    @app.post("/segment", tags=["Images"], responses=_RESULTS, response_class=Response)
    async def segment(request: Request, form: _Form) -> Response:
        """Segment an uploaded image file."""
        content = await form.image.read()
        name = printable(os.path.basename(form.image.filename or "image"), limit=200)
        return await respond(request, form, lambda: content, name)

    @app.post("/segment/base64", tags=["Images"], responses=_RESULTS, response_class=Response)
    async def segment_base64(request: Request, body: JsonRequest) -> Response:
        """Segment an image that is sent in base64."""
        return await respond(
            request, body, lambda: decode_base64(body.image, service.limits), "image"
        )

    async def respond(
        request: Request, options: Options, read: Callable[[], bytes], name: str
    ) -> Response:
        def job() -> Answer:
            given = parse_names(options.texts, options.stuff_texts, options.vocabulary)
            names = given.vocabulary or service.names
            if names is None:
                raise VocabularyError("no class names: send texts, stuff_texts or vocabulary")
            result = service.segment(
                read(),
                names,
                options.settings(),
                return_vis=options.output == "drawing",
                legend=options.legend,
            )
            return make_answer(result, options.output, names, name, given.warnings)

        answer = await service.run(request, job)
        return Response(answer.body, media_type=answer.media_type, headers=dict(answer.headers))


def _add_states(app: FastAPI, service: Service) -> None:
    """Add the paths that tell about the server."""

    @app.get("/", include_in_schema=False)
    async def to_docs() -> RedirectResponse:
        return RedirectResponse("docs")

    @app.get("/health", tags=["Server"])
    async def health() -> dict[str, str]:
        """Tell that the server can be used. It answers while images are processed, too."""
        return {"status": "UP"}

    @app.get("/model", tags=["Server"])
    async def model() -> dict[str, Any]:
        """Describe the model, the default names and settings, and the limits."""
        return describe(service)

    @app.get("/metrics", tags=["Server"], response_class=Response)
    async def metrics() -> Response:
        """Return measurements in the text format of Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def describe(service: Service) -> dict[str, Any]:
    """Return the content of ``/model``."""
    inferencer = service.inferencer
    names = service.names
    return dict(
        config=os.path.basename(name_of(inferencer.cfg)),
        device=str(inferencer.device),
        precision=inferencer.precision,
        random_weights=inferencer.random_weights,
        classes=None if names is None else len(names),
        names=None if names is None else printable(names.describe()),
        settings=service.settings,
        limits=dict(
            max_bytes=service.limits.max_bytes,
            max_pixels=service.limits.max_pixels,
            max_text=MAX_TEXT,
            max_requests=service.max_active,
            timeout=service.timeout,
        ),
    )


def _add_errors(app: FastAPI) -> None:
    """Let all errors have the form of :class:`Problem`."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(dict(error=error.detail), error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = []
        for entry in error.errors()[:5]:
            place = ".".join(str(part) for part in entry["loc"][1:]) or "request"
            if entry["type"] == "json_invalid":
                place = f"request, character {place}"
            problems.append(f"{place}: {entry['msg'].removeprefix('Value error, ')}")
        return JSONResponse(dict(error=printable("; ".join(problems), limit=500)), 422)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises the error again, so that the server logs it.
        print_log(f"{request.url.path}: {printable(error)}", logger="current", level=logging.ERROR)
        return JSONResponse(dict(error=INTERNAL_ERROR), 500)
