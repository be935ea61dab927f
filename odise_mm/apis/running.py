"""Runs a model on images: reads, prepares and batches them, and returns a result for each.

An image that fails does not stop the others: its result has an error. Arguments of calls, drawings
and files of results are the work of :class:`~odise_mm.apis.OpenVocabInferencer`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement

from odise_mm.apis.progress import LONG_LIST, SharedProgress
from odise_mm.apis.sources import Source
from odise_mm.apis.windows import Windows, segment_windows
from odise_mm.errors import DeviceMemoryError
from odise_mm.structures import SegmentationResult
from odise_mm.utils.display import printable
from odise_mm.utils.image import ImageError, read_image
from odise_mm.utils.memory import forget_frames, image_guard, memory_guard
from odise_mm.vocabulary import Vocabulary

if TYPE_CHECKING:
    from odise_mm.models.segmentors.base_segmentor import BaseSegmentor
    from odise_mm.models.segmentors.regions import EmbeddedRegions


@dataclass
class _Loaded:
    """An image that was read and preprocessed."""

    source: Source
    image: np.ndarray  # as read, BGR
    inputs: torch.Tensor
    data_sample: BaseDataElement


@dataclass
class _Large:
    """An image that was read and is larger than a window."""

    source: Source
    image: np.ndarray  # as read, BGR


_Image = _Loaded | _Large | SegmentationResult
Begin = Callable[[Source], SegmentationResult | None]


@dataclass(frozen=True)
class Request:
    """Settings of one call.

    Attributes:
        vocabulary: the class names.
        settings: checked settings of the results; those that are left out are the model's.
        channel_order: of images that are arrays, "bgr" or "rgb".
        windows: how images are cut that are larger than a window; None: they are not.
        progress: whether to show a progress bar for images of many windows.
    """

    vocabulary: Vocabulary
    settings: Mapping[str, Any]
    channel_order: str = "bgr"
    windows: Windows | None = None
    progress: bool = True


@dataclass
class Locks:
    """Locks that all runs of a model share.

    Attributes:
        transforms: held while an image is prepared, as some transforms store random draws.
        model: held while the model runs, so that it needs the memory of one batch.
    """

    transforms: threading.Lock = field(default_factory=threading.Lock)
    model: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class ImageRunner:
    """Runs a model on images, for any number of calls at the same time.

    Attributes:
        model: the segmentor.
        transforms: the test pipeline for images that were read.
        locks: shared by all runners of the model and the transforms.
        device, precision: of the model; named in messages about memory.
        max_pixels: larger images are rejected; None: no limit.
        random_weights: whether results are marked as those of random weights.
        progress: shows the windows of large images.
    """

    model: BaseSegmentor
    transforms: Callable[[dict[str, Any]], dict[str, Any]]
    locks: Locks
    device: torch.device
    precision: str
    max_pixels: int | None
    random_weights: bool
    progress: SharedProgress

    def run(
        self,
        sources: Iterable[Source],
        request: Request,
        batch_size: int,
        begin: Begin | None = None,
        workers: int = 0,
    ) -> Iterator[tuple[SegmentationResult, np.ndarray | None]]:
        """Segment images.

        Args:
            sources: the images.
            request: settings of the call.
            batch_size: number of images that run together.
            begin: called with every source before it is read; may return its result, which an
                earlier call made. Only without ``workers``.
            workers: number of threads that read and prepare images ahead of the model. 0: images
                are read when the model needs them.

        Yields:
            Results in the order of the sources, with ``error`` set if the image failed, each with
            its image (H, W, 3) uint8 BGR. The image is None if it failed or was not read.

        Raises:
            Exception: that of a source, after the results of the sources before it.
        """
        waiting: list[_Image] = []
        ready = 0
        with closing(self._images(sources, request, begin, workers)) as images:
            for source, image in images:
                if source.failure is not None:
                    yield from self._finish(waiting, request)
                    raise source.failure
                waiting.append(image)
                ready += not isinstance(image, SegmentationResult)
                if ready == batch_size or ready == 0 or source.ends_batch:
                    yield from self._finish(waiting, request)
                    waiting, ready = [], 0
        yield from self._finish(waiting, request)

    def embed(self, source: Source, image: np.ndarray, masks: np.ndarray) -> EmbeddedRegions:
        """Embed regions of an image.

        Args:
            source: names the image in messages.
            image: (H, W, 3) uint8 BGR.
            masks: the regions, (R, H, W) bool.

        Raises:
            DeviceMemoryError: the image needs too much memory.
        """
        loaded = self._prepare(source, image)
        with self._model_turn([loaded]):
            data = self.model.data_preprocessor(_batch([loaded]), False)
            regions = torch.from_numpy(masks).to(self.device)
            return self.model.embed_regions(data["inputs"], data["data_samples"], regions)

    def _images(
        self,
        sources: Iterable[Source],
        request: Request,
        begin: Begin | None,
        workers: int,
    ) -> Generator[tuple[Source, _Image], None, None]:
        """Yield each source with its image, or its result if it failed or is finished."""

        def load(source: Source) -> _Image:
            try:
                return self._load(source, request)
            except (ImageError, DeviceMemoryError) as err:
                return self._failed(source, request, err)

        if not workers:
            for source in sources:
                finished = None if begin is None else begin(source)
                yield source, finished or load(source)
            return
        assert begin is None, "threads would read images before they begin"
        ahead: deque[tuple[Source, Future[_Image]]] = deque()
        pool = ThreadPoolExecutor(workers, "read_images")
        try:
            for source in sources:
                ahead.append((source, pool.submit(load, source)))
                if len(ahead) > 2 * workers:
                    first, image = ahead.popleft()
                    yield first, image.result()
            while ahead:
                first, image = ahead.popleft()
                yield first, image.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _failed(self, source: Source, request: Request, error: Exception) -> SegmentationResult:
        forget_frames(error)  # they would keep the image in memory with the result
        return SegmentationResult(
            image_path=source.path,
            image_name=source.name,
            class_names=request.vocabulary.names,
            random_weights=self.random_weights,
            error=error,
        )

    def _load(self, source: Source, request: Request) -> _Loaded | _Large:
        if source.error is not None:
            raise source.error
        image = read_image(
            source.value if source.read is None else source.read(),
            channel_order=request.channel_order,
            name=source.name,
            max_pixels=self.max_pixels,
        )
        if request.windows is not None and max(image.shape[:2]) > request.windows.size:
            return _Large(source, image)
        return self._prepare(source, image)

    def _prepare(self, source: Source, image: np.ndarray) -> _Loaded:
        size = image.shape[:2]
        read = dict(
            img=image, img_path=source.path, img_id=source.name, img_shape=size, ori_shape=size
        )
        with image_guard(source.name, image.shape), self.locks.transforms:
            data = self.transforms(read)
        return _Loaded(source, image, data["inputs"], data["data_samples"])

    def _finish(
        self, waiting: list[_Image], request: Request
    ) -> Iterator[tuple[SegmentationResult, np.ndarray | None]]:
        batch = [item for item in waiting if isinstance(item, _Loaded)]
        outputs = iter(self._predict_each(batch, request) if batch else ())
        for item in waiting:
            if isinstance(item, SegmentationResult):
                yield item, None
                continue
            if isinstance(item, _Large):
                result = self._segment_windows(item, request)
                yield result, item.image if result.ok else None
                continue
            output = next(outputs)
            if isinstance(output, Exception):
                yield self._failed(item.source, request, output), None
                continue
            try:
                with image_guard(item.source.name, item.image.shape):
                    result = self._to_result(output, item, request.vocabulary)
            except DeviceMemoryError as err:
                yield self._failed(item.source, request, err), None
            else:
                yield result, item.image

    def _segment_windows(self, item: _Large, request: Request) -> SegmentationResult:
        """Segment a large image; on errors return a result with ``error``."""
        assert request.windows is not None, "otherwise images are not large"

        def segment(window: np.ndarray) -> SegmentationResult:
            loaded = self._prepare(item.source, window)
            (sample,) = self._predict([loaded], only_panoptic)
            return self._to_result(sample, loaded, request.vocabulary)

        changed = {"panoptic": True, "semantic": False, "instance": False, "min_area": 0}
        only_panoptic = replace(request, settings={**request.settings, **changed})
        min_area = {**self.model.test_cfg, **request.settings}.get("min_area", 0)
        count = request.windows.count(*item.image.shape[:2])
        show = request.progress and count >= LONG_LIST
        try:
            with (
                image_guard(item.source.name, item.image.shape),
                self.progress.bar("windows", count, show) as advance,
            ):
                result = segment_windows(item.image, segment, request.windows, advance, min_area)
        except (FloatingPointError, DeviceMemoryError) as err:
            named = type(err)(f"{printable(item.source.name)}: {err}")
            return self._failed(item.source, request, named)
        result.image_path, result.image_name = item.source.path, item.source.name
        return result

    def _predict_each(
        self, batch: list[_Loaded], request: Request
    ) -> list[BaseDataElement | FloatingPointError | DeviceMemoryError]:
        """Like :meth:`_predict`, but return an exception for each image that fails."""
        try:
            return list(self._predict(batch, request))
        except (FloatingPointError, DeviceMemoryError) as err:
            if len(batch) == 1:
                return [type(err)(f"{printable(batch[0].source.name)}: {err}")]
            if isinstance(err, DeviceMemoryError):
                print_log(
                    f"{err} Retrying the images one by one.",
                    logger="current",
                    level=logging.WARNING,
                )
        # Outside the handler, the exception and the tensors in its frames are freed.
        return [output for item in batch for output in self._predict_each([item], request)]

    def _predict(self, batch: list[_Loaded], request: Request) -> list[BaseDataElement]:
        with self._model_turn(batch):
            samples = self.model.test_step(_batch(batch), request.vocabulary, request.settings)
            return [sample.cpu() for sample in samples]

    @contextmanager
    def _model_turn(self, batch: list[_Loaded]) -> Iterator[None]:
        """Let only this thread use the model; explain errors of memory with the batch's sizes."""
        sizes = [tuple(item.inputs.shape[-2:]) for item in batch]
        originals = [item.image.shape[:2] for item in batch]
        guard = memory_guard(self.device, self.precision, sizes, originals)
        with self.locks.model, guard, torch.no_grad():
            yield

    def _to_result(
        self, sample: BaseDataElement, item: _Loaded, vocabulary: Vocabulary
    ) -> SegmentationResult:
        return SegmentationResult.from_sample(
            sample,
            vocabulary.names,
            image_path=item.source.path,
            image_name=item.source.name,
            height=item.image.shape[0],
            width=item.image.shape[1],
            random_weights=self.random_weights,
        )


def _batch(items: list[_Loaded]) -> dict[str, Any]:
    """Return the input of the model's ``test_step``."""
    return dict(
        inputs=[item.inputs for item in items], data_samples=[item.data_sample for item in items]
    )
