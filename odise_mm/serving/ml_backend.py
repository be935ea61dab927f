"""An ML backend of Label Studio: tasks in, predictions with brush masks out.

Label Studio calls ``/health`` and ``/setup`` when the backend is added to a project, and
``/predict`` for tasks. The labels of the project are the class names. The package label-studio-ml
is not used: its last release on PyPI, 1.0.9 of 2023, requires Flask 1.1.2.
"""

from __future__ import annotations

import logging
from typing import Any

import anyio
from fastapi import FastAPI, Request, Response
from mmengine.logging import print_log
from starlette.exceptions import HTTPException

from odise_mm.errors import ConfigError, ImageError
from odise_mm.io.labelstudio import MODEL_VERSION, describe_prediction
from odise_mm.serving.answers import json_answer
from odise_mm.serving.label_studio import ImageStore, LabelConfig, image_of
from odise_mm.serving.service import Service
from odise_mm.serving.uploads import public_message
from odise_mm.utils.display import printable


def add_ml_backend(app: FastAPI, service: Service, images: ImageStore) -> None:
    """Add the paths that Label Studio calls.

    Args:
        app: Application of the API, which has ``/health``.
        service: The model.
        images: Where images come from.
    """

    @app.post("/setup", tags=["Label Studio"])
    async def setup(body: dict[str, Any]) -> dict[str, str]:
        """Check the labeling config of a project (``schema``)."""
        _parse(body.get("schema"))
        return dict(model_version=MODEL_VERSION)

    @app.post("/predict", tags=["Label Studio"], response_class=Response)
    async def predict(request: Request, body: dict[str, Any]) -> Response:
        """Return predictions for ``tasks``, with the labels of ``label_config``.

        A task that fails has no predictions, and the log tells why. If all fail, so does the
        request.
        """
        config = _parse(body.get("label_config"))
        names = config.vocabulary(service.names)
        tasks = body.get("tasks")
        if not isinstance(tasks, list):
            raise HTTPException(422, "tasks: must be a list")

        def segment(content: bytes) -> dict[str, Any]:
            result = service.segment(content, names)
            return describe_prediction(result, config.labels, config.from_name, config.to_name)

        results: list[list[dict[str, Any]]] = []
        problems = []
        for task in tasks:
            if await request.is_disconnected():
                raise HTTPException(503, "the client left")
            try:
                content = await anyio.to_thread.run_sync(image_of, task, config, images)
                results.append([await service.run(request, lambda: segment(content))])  # noqa: B023
            except (ImageError, HTTPException) as err:
                message = err.detail if isinstance(err, HTTPException) else public_message(err)
                number = task.get("id") if isinstance(task, dict) else None
                problems.append(f"task {printable(number, limit=40)}: {message}")
                print_log(problems[-1], logger="current", level=logging.WARNING)
                results.append([])
        if problems and len(problems) == len(tasks):
            raise HTTPException(422, problems[0])
        answer = json_answer(dict(results=results, model_version=MODEL_VERSION))
        return Response(answer.body, media_type=answer.media_type)

    @app.get("/versions", tags=["Label Studio"])
    async def versions() -> dict[str, list[str]]:
        """List the versions of the model: one."""
        return dict(versions=[MODEL_VERSION])

    @app.post("/webhook", tags=["Label Studio"])
    async def webhook() -> dict[str, str]:
        """Ignore events, such as new annotations. The model does not train."""
        return dict(status="ignored")


def _parse(text: Any) -> LabelConfig:
    try:
        return LabelConfig.parse(text)
    except ConfigError as err:
        raise HTTPException(422, str(err)) from None
