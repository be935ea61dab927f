"""The HTTP API: images and class names in, results out."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi_offline import FastAPIOffline
from mmengine.logging import print_log
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from odise_mm.apis import OpenVocabInferencer
from odise_mm.config.walking import name_of
from odise_mm.errors import (
    ConfigError,
    DeviceMemoryError,
    ImageError,
    VocabularyError,
)
from odise_mm.serving.answers import Answer, Output, make_answer
from odise_mm.serving.guard import Guard
from odise_mm.serving.uploads import (
    INTERNAL_ERROR,
    MAX_TEXT,
    Limits,
    TooLargeError,
    decode_base64,
    parse_names,
    public_message,
    read_upload,
)
from odise_mm.utils.display import printable
from odise_mm.version import __version__
from odise_mm.vocabulary import Vocabulary

_FORM_BYTES = 1 << 20  # everything in a request but the image
_LOOK_AT_CLIENT = 0.5  # seconds between looks whether the client is still there
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (TooLargeError, 413),
    (ImageError, 422),
    (VocabularyError, 422),
    (ConfigError, 422),
    (DeviceMemoryError, 503),
)
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
    legend: bool = Field(False, description="Add a legend to the drawing")

    def settings(self) -> dict[str, Any]:
        """Return the given settings of results, which are arguments of the inferencer."""
        names = ("score_threshold", "overlap_threshold", "min_area", "alpha", "beta")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class FormRequest(Options):
    """A request with the image as a file."""

    image: UploadFile = Field(description="File of the image")


_Form = Annotated[FormRequest, Form(media_type="multipart/form-data")]


class JsonRequest(Options):
    """A request with the image in base64."""

    image: str = Field(description="File of the image in base64, or as a data URL")


class Problem(BaseModel):
    """Why there is no result."""

    error: str


class Metrics:
    """Measurements for Prometheus.

    Args:
        paths: Paths of requests that are counted on their own; others are counted together.
    """

    def __init__(self, paths: tuple[str, ...] = ()) -> None:
        self.registry = CollectorRegistry()
        self.paths = paths
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "odise_mm_requests", "Answered requests", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "odise_mm_request_seconds",
            "Time from the start of a request to its answer",
            ["path"],
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
            registry=self.registry,
        )
        self.inference = Histogram(
            "odise_mm_image_seconds",
            "Time to decode, segment and encode an image, without waiting",
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
            registry=self.registry,
        )
        self.active = Gauge(
            "odise_mm_active_requests", "Requests in the queue or in work", registry=self.registry
        )

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        path = path if path in self.paths else "other"
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)


class Service:
    """A model, its limits and its queue.

    Args:
        inferencer: The model.
        names: Class names of requests without any. None: such requests are rejected.
        settings: Settings of results; those of a request replace them.
        limits: Limits of images.
        queue: Number of requests that may wait.
        timeout: Seconds after which a request is given up.
        workers: Number of threads that read, draw and encode images. The model processes one image
            at a time.
    """

    def __init__(
        self,
        inferencer: OpenVocabInferencer,
        *,
        names: Vocabulary | None = None,
        settings: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        queue: int = 16,
        timeout: float = 60.0,
        workers: int = 1,
    ) -> None:
        self.inferencer = inferencer
        self.names = names
        self.settings = dict(settings or {})
        self.limits = limits or Limits()
        self.max_active = queue + workers
        self.timeout = timeout
        self.metrics = Metrics(("/segment", "/segment/base64", "/health", "/metrics", "/model"))
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="odise_mm")

    def close(self) -> None:
        """End the workers, after the images that they process. Waiting requests are dropped."""
        self._workers.shutdown(wait=True, cancel_futures=True)

    def segment(self, content: bytes, name: str, options: Options) -> Answer:
        """Segment an uploaded image.

        Args:
            content: Bytes of the file.
            name: Name for the answer.
            options: Class names and settings.

        Raises:
            OdiseError: If the image, the names or the settings cannot be used.
        """
        started = time.monotonic()
        given = parse_names(options.texts, options.stuff_texts, options.vocabulary)
        names = given.vocabulary or self.names
        if names is None:
            raise VocabularyError("no class names: send texts, stuff_texts or vocabulary")
        image = read_upload(content, self.limits)
        (result,) = self.inferencer(
            image,
            vocabulary=names,
            return_vis=options.output == "drawing",
            legend=options.legend,
            progress=False,
            **{**self.settings, **options.settings()},
        )
        answer = make_answer(result, options.output, names, name, given.warnings)
        self.metrics.inference.observe(time.monotonic() - started)
        return answer

    async def run(self, request: Request, job: Callable[[], Answer]) -> Response:
        """Run a job in a worker, and return its answer.

        The job is dropped if it has not begun when the time is over or the client leaves.

        Raises:
            HTTPException: If the job fails.
        """
        future = asyncio.wrap_future(self._workers.submit(job))
        ends = time.monotonic() + self.timeout
        while not future.done():
            left = ends - time.monotonic()
            if left <= 0 or await request.is_disconnected():
                future.cancel()
                raise HTTPException(
                    503,
                    f"no result within {self.timeout:g} s; try again later, or with a smaller "
                    "image or fewer names",
                    headers={"Retry-After": "5"},
                )
            await asyncio.wait({future}, timeout=min(left, _LOOK_AT_CLIENT))
        try:
            answer = future.result()
        except Exception as err:
            status = next((code for kind, code in _STATUS if isinstance(err, kind)), 500)
            if public_message(err) == INTERNAL_ERROR:
                raise  # to the log
            raise HTTPException(status, public_message(err)) from None
        return Response(answer.body, media_type=answer.media_type, headers=dict(answer.headers))


def make_app(service: Service) -> FastAPI:
    """Return the ASGI application of a service, which closes the service when it ends."""

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

    @app.get("/", include_in_schema=False)
    async def to_docs() -> RedirectResponse:
        return RedirectResponse("docs")

    @app.post("/segment", responses=_RESULTS, response_class=Response)
    async def segment(request: Request, form: _Form) -> Response:
        """Segment an uploaded image file."""
        content = await form.image.read()
        name = printable(os.path.basename(form.image.filename or "image"), limit=200)
        return await service.run(request, lambda: service.segment(content, name, form))

    @app.post("/segment/base64", responses=_RESULTS, response_class=Response)
    async def segment_base64(request: Request, body: JsonRequest) -> Response:
        """Segment an image that is sent in base64."""

        def job() -> Answer:
            return service.segment(decode_base64(body.image, service.limits), "image", body)

        return await service.run(request, job)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Tell that the server can be used. It answers while images are processed, too."""
        return {"status": "UP"}

    @app.get("/model")
    async def model() -> dict[str, Any]:
        """Describe the model, the default names and settings, and the limits."""
        return describe(service)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return measurements in the text format of Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


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
