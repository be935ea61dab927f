"""A model behind a queue: its workers, limits and metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.exceptions import HTTPException
from starlette.requests import Request

from odise_mm.apis import OpenVocabInferencer
from odise_mm.errors import ConfigError, DeviceMemoryError, ImageError, VocabularyError
from odise_mm.serving.uploads import (
    INTERNAL_ERROR,
    Limits,
    TooLargeError,
    public_message,
    read_upload,
)
from odise_mm.structures import SegmentationResult
from odise_mm.vocabulary import Vocabulary

_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)  # seconds
_LOOK_AT_CLIENT = 0.5  # seconds between looks whether the client is still there
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (TooLargeError, 413),
    (ImageError, 422),
    (VocabularyError, 422),
    (ConfigError, 422),
    (DeviceMemoryError, 503),
)

T = TypeVar("T")


class Metrics:
    """Measurements for Prometheus.

    Attributes:
        paths: Paths whose requests are counted separately; all others are counted together.
    """

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "odise_mm_requests", "Answered requests", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "odise_mm_request_seconds",
            "Time from the start of a request to its answer",
            ["path"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.images = Histogram(
            "odise_mm_image_seconds",
            "Time to decode, segment and draw an image, without waiting",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.active = Gauge(
            "odise_mm_active_requests",
            "Requests that are being processed or wait",
            registry=self.registry,
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
        self.metrics = Metrics()
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="odise_mm")

    def close(self) -> None:
        """End the workers, after the images that they process. Waiting requests are dropped."""
        self._workers.shutdown(wait=True, cancel_futures=True)

    def segment(
        self,
        content: bytes,
        names: Vocabulary,
        settings: Mapping[str, Any] | None = None,
        **drawing: Any,
    ) -> SegmentationResult:
        """Segment an uploaded image.

        Args:
            content: Bytes of the file.
            names: The classes.
            settings: Settings of the result, which replace those of the service.
            drawing: Arguments of the inferencer: ``return_vis``, ``legend``.

        Raises:
            OdiseError: If the image, the names or the settings cannot be used.
        """
        started = time.monotonic()
        image = read_upload(content, self.limits)
        (result,) = self.inferencer(
            image,
            vocabulary=names,
            progress=False,
            **drawing,
            **{**self.settings, **(settings or {})},
        )
        self.metrics.images.observe(time.monotonic() - started)
        return result

    async def run(self, request: Request, job: Callable[[], T]) -> T:
        """Run a job in a worker, and return what it returns.

        The job is dropped if it has not begun when the time is over or the client leaves.

        Raises:
            HTTPException: If the job fails because of the request, or takes too long.
        """
        submitted = self._workers.submit(job)
        future = asyncio.wrap_future(submitted)
        ends = time.monotonic() + self.timeout
        while not future.done():
            left = ends - time.monotonic()
            if left <= 0 or await request.is_disconnected():
                submitted.cancel()  # at once: that of the other future waits for the event loop
                raise HTTPException(
                    503,
                    f"no result within {self.timeout:g} s; try again later, or with a smaller "
                    "image or fewer names",
                    headers={"Retry-After": "5"},
                )
            await asyncio.wait({future}, timeout=min(left, _LOOK_AT_CLIENT))
        try:
            return future.result()
        except Exception as err:
            if public_message(err) == INTERNAL_ERROR:
                raise  # to the log
            status = next((code for kind, code in _STATUS if isinstance(err, kind)), 500)
            raise HTTPException(status, public_message(err)) from None
