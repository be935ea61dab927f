"""Labeling of shards in one process: threads read and write while the model computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from typing import Any

from odise_mm.apis import OpenVocabInferencer
from odise_mm.apis.output import describe_settings
from odise_mm.apis.sources import Source
from odise_mm.labeling.folder import LabelFolder, ShardWriter
from odise_mm.structures import SegmentationResult
from odise_mm.vocabulary import Vocabulary

_WAITING = 8
"""Results that wait for the thread that writes; more would fill the memory."""


@dataclass(frozen=True)
class Recipe:
    """How shards are made; can be sent to other processes."""

    config: Any
    weights: Any = None
    device: str | None = None
    precision: str = "fp32"
    model: Mapping[str, Any] = field(default_factory=dict)
    """Other arguments of :class:`~odise_mm.apis.OpenVocabInferencer`."""
    texts: Any = None
    stuff_texts: Any = None
    vocabulary: Any = None
    formats: Sequence[str] = ("jsonl",)
    batch_size: int = 1
    window: int | None = None
    overlap: int | None = None
    workers: int = 4
    settings: Mapping[str, Any] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        """Return what must be equal for all shards, as far as it is known without the model."""
        without = ("device", "batch_size", "workers")
        return {name: value for name, value in asdict(self).items() if name not in without}

    def build(self) -> OpenVocabInferencer:
        """Build the model; only its panoptic results are computed."""
        options = dict(self.model)
        changes = {
            "model.test_cfg.semantic": False,
            "model.test_cfg.instance": False,
            **(options.pop("cfg_options", None) or {}),
        }
        return OpenVocabInferencer(
            self.config, self.weights, self.device, self.precision, cfg_options=changes, **options
        )


class Worker:
    """Labels shards with one model.

    Args:
        recipe: how shards are made.
        folder: the output folder, with a plan.
        inferencer: the model. None: it is built.

    Raises:
        OutputError: the folder's other shards are made by another model or with other classes.
    """

    def __init__(
        self, recipe: Recipe, folder: LabelFolder, inferencer: OpenVocabInferencer | None = None
    ) -> None:
        self.recipe, self.folder = recipe, folder
        self.inferencer = inferencer or recipe.build()
        self.vocabulary = self.inferencer.make_vocabulary(
            recipe.texts, recipe.stuff_texts, recipe.vocabulary
        )
        folder.agree(self._described(), self.vocabulary, self._notice())

    def _described(self) -> dict[str, str]:
        inferencer = self.inferencer
        test_cfg = {**inferencer.model.test_cfg, **self.recipe.settings}
        memory = getattr(inferencer.model, "memory", None)
        if memory:
            test_cfg["memory"] = memory.digest
        described = describe_settings(
            inferencer.cfg,
            inferencer.weights,
            self.vocabulary,
            inferencer.precision,
            draw=False,
            legend=None,
            fill="class",
            test_cfg=test_cfg,
            times=False,
        )
        del described["images_drawn"]
        memory = getattr(inferencer.model, "memory", None)
        return described if not memory else dict(described, memory=memory.digest)

    def _notice(self) -> str | None:
        from odise_mm.models.random_weights import RANDOM_WEIGHTS_NOTICE

        return RANDOM_WEIGHTS_NOTICE if self.inferencer.random_weights else None

    def run(self, shards: Iterable[int], after_each: Callable[[bool], None]) -> None:
        """Label shards.

        Args:
            shards: their numbers.
            after_each: called after every image; the argument tells whether it failed.
        """
        recipe = self.recipe
        places: deque[tuple[int, bool]] = deque()  # of the images that are read ahead
        results = self.inferencer.segment_sources(
            self._sources(shards, places),
            self.vocabulary,
            batch_size=recipe.batch_size,
            window=recipe.window,
            overlap=recipe.overlap,
            workers=recipe.workers,
            **recipe.settings,
        )
        with _Writing(self.folder, recipe.formats, self.vocabulary) as writing:
            with closing(results):  # type: ignore[type-var]
                for result in results:
                    shard, is_last = places.popleft()
                    writing.put(shard, result, is_last)
                    after_each(not result.ok)

    def _sources(self, shards: Iterable[int], places: deque[tuple[int, bool]]) -> Iterator[Source]:
        for shard in shards:
            items = self.folder.items(shard)
            for number, item in enumerate(items, start=1):
                is_last = number == len(items)
                places.append((shard, is_last))
                # A batch ends with its shard, so that results don't depend on what is finished.
                yield item.source(self.folder.root, is_last)


class _Writing:
    """Writes results in a thread, in order, one shard after the other."""

    def __init__(self, folder: LabelFolder, formats: Sequence[str], vocabulary: Vocabulary) -> None:
        self.folder, self.formats, self.vocabulary = folder, formats, vocabulary
        self._thread = ThreadPoolExecutor(1, "write_shards")
        self._waiting: deque[Future[None]] = deque()
        self._shard = ExitStack()
        self._writer: ShardWriter | None = None
        self._broken = False

    def put(self, shard: int, result: SegmentationResult, is_last: bool) -> None:
        """Write a result soon; errors of earlier ones are raised here."""
        self._waiting.append(self._thread.submit(self._write, shard, result, is_last))
        while len(self._waiting) > _WAITING or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def _write(self, shard: int, result: SegmentationResult, is_last: bool) -> None:
        if self._broken:  # the shard must not be finished without an image
            return
        self._broken = True
        if self._writer is None:
            writer = ShardWriter(self.folder, shard, self.formats, self.vocabulary)
            self._writer = self._shard.enter_context(writer)
        self._writer.add(result)
        if is_last:
            self._writer = None
            self._shard.close()
        self._broken = False

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            while self._waiting and kind is None:
                self._waiting.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)
            if self._writer is not None:  # an unfinished shard
                self._shard.__exit__(InterruptedError, InterruptedError(), None)
