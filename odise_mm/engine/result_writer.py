"""What a test run leaves behind beside its numbers: result files, images, a progress bar."""

from __future__ import annotations

import heapq
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.structures import DetDataSample
from mmengine.dist import (
    all_gather_object,
    barrier,
    broadcast_object_list,
    get_rank,
    get_world_size,
)
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from PIL import Image
from pycocotools import mask as coco_mask
from rich.progress import Progress, TaskID

from odise_mm.annotations.label_maps import label_map_dtype
from odise_mm.annotations.panoptic_io import (
    describe_categories,
    describe_result,
    write_panoptic_png,
)
from odise_mm.errors import ConfigError, OutputError, PanopticFileError
from odise_mm.registry import HOOKS
from odise_mm.structures import SegmentationResult
from odise_mm.utils.display import printable
from odise_mm.utils.files import atomic_writer, read_json, write_json
from odise_mm.utils.image import read_image
from odise_mm.utils.outputs import (
    InputFiles,
    check_folder,
    image_path,
    refuse_foreign,
    spelling,
    stem_of,
    write_image,
)
from odise_mm.utils.settings import check_whole
from odise_mm.visualization import draw_panoptic

_TASKS = ("panoptic", "semantic", "instance")
_DUMPED = ("panoptic", "semantic", "instances.json", "panoptic.json")
_DESCRIPTION = "results of odise_mm on "


@HOOKS.register_module()
class ResultWriterHook(Hook):
    """Writes results while a test runs, each process those of its own images.

    Below ``dump_dir/<set name>``: ``panoptic/*.png`` and ``panoptic.json`` (COCO's panoptic
    format), ``instances.json`` (COCO's results format), ``semantic/*.png`` (class indices; 16 bits
    for more than 255 classes, as the largest number means "ignored" to readers of label maps).
    Category ids are the dataset's own where it has them, else class index + 1; image ids likewise,
    or places in the dataset where two images share one. Everything appears when the set is
    finished, in the place of an earlier dump, which stays as it was if the run is ended before; it
    does not depend on the number of processes.
    Below ``show_dir/<set name>``: images with the panoptic result drawn, one after the other.
    No file is replaced that was not written by this hook.

    All three results are made while dumping, whatever the metrics need.

    Args:
        dump_dir, show_dir: made where missing; None: nothing is written.
        show_interval: every how many images of the set an image is drawn; the first one is.
        notice: text for a banner above images, and for ``info`` in the JSON file.
    """

    priority = "LOWEST"  # the numbers are in the log before a dump is finished

    def __init__(
        self,
        dump_dir: str | os.PathLike | None = None,
        show_dir: str | os.PathLike | None = None,
        show_interval: int = 1,
        notice: str | None = None,
    ) -> None:
        check_whole("show_interval", show_interval)
        self.dump_dir = None if dump_dir is None else Path(dump_dir)
        self.show_dir = None if show_dir is None else Path(show_dir)
        self.show_interval = show_interval
        self.notice = notice
        self.set_name = ""
        """Name of the set whose results come next: the folder that they go to."""
        self._open = ExitStack()
        self._failure = ""
        """Why no more is written of this set; a test goes on for its numbers."""

    def check(self, set_name: str) -> None:
        """Look before long work whether a set's results can be written.

        Raises:
            OutputError: a folder cannot be made or written to, or there is somebody else's dump.
        """
        if self.show_dir is not None:
            check_folder(self.show_dir / set_name)
        if self.dump_dir is not None:
            folder = self.dump_dir / set_name
            check_folder(folder)
            there = [name for name in _DUMPED if os.path.lexists(folder / name)]
            if there and not _is_dump(folder) and not self._unfinished(set_name).exists():
                raise OutputError(
                    f"{printable(folder)}: has {' and '.join(there)} that no test wrote; choose "
                    "another folder for the dump, or remove them"
                )

    def _unfinished(self, set_name: str) -> Path:
        """Where a set's dump is made."""
        return self.dump_dir / f".{set_name}.unfinished"

    def before_test_epoch(self, runner: Runner) -> None:
        """Prepare for a set.

        Raises:
            ConfigError: the vocabulary has too many classes for label maps.
        """
        self._failure = ""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        dataset = runner.test_loop.dataloader.dataset
        self._vocabulary = model.vocabulary
        self._category_ids = _category_ids(dataset, len(self._vocabulary))
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        paths = [info["img_path"] for info in infos]
        self._as_stored = {info["img_path"] for info in infos if not info.get("exif", True)}
        self._index = {path: index for index, path in enumerate(paths)}
        if len(self._index) < len(paths) and (self.dump_dir or self.show_dir):
            raise ConfigError(
                f"{self.set_name}: has images several times, and their results would be written "
                "over each other: write those of the dataset that is repeated"
            )
        ids = [info.get("img_id", index) for index, info in enumerate(infos)]
        # Datasets that are joined may use the same ids, but a file of results has each once.
        self._image_ids = ids if len(set(ids)) == len(ids) else list(range(len(ids)))
        self._stems = unique_stems(paths)
        self.check(self.set_name)
        inputs = InputFiles(*(value for info in infos for value in info.values()))
        if self.show_dir is not None:
            for path in paths[:: self.show_interval]:
                drawn = image_path(self.show_dir / self.set_name, self._stems[path])
                inputs.refuse(drawn)
                refuse_foreign(drawn)
        if self.show_dir is not None:
            model.test_cfg["panoptic"] = True
        if self.dump_dir is not None:
            self._label_dtype = label_map_dtype(len(self._vocabulary))
            for task in _TASKS:
                model.test_cfg[task] = True
            folder = self._unfinished(self.set_name)
            if get_rank() == 0:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            barrier()  # it is there, and empty
            self._parts = {
                kind: self._open.enter_context(
                    _part(folder, kind, get_rank()).open("w", encoding="utf-8")
                )
                for kind in ("panoptic", "instances")
            }

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[DetDataSample] | None = None,
    ) -> None:
        for sample in outputs or ():
            index = self._index[sample.img_path]
            draw = self.show_dir is not None and index % self.show_interval == 0
            if self._failure or (not draw and self.dump_dir is None):
                continue
            sample = sample.cpu()
            result = SegmentationResult.from_panoptic(
                sample.pred_panoptic_seg, self._vocabulary.names
            )
            result.image_path = result.image_name = sample.img_path
            try:
                if draw:
                    self._show(result)
                if self.dump_dir is not None:
                    self._dump(index, sample, result)
            except (OSError, OutputError, MemoryError) as err:
                if batch_idx == 0:  # where nothing is lost yet
                    raise
                self._failure = (
                    f"results of {printable(sample.img_path)} could not be written ({err})"
                )
                runner.logger.error(f"{self._failure}; the test goes on without writing results")

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Finish a set's files.

        Raises:
            OutputError: not all could be written, in any process; on all processes.
        """
        failures = all_gather_object(self._failure or self._attempt(self._open.close))
        if self.dump_dir is not None and not any(failures):  # all parts are complete
            outcome = [self._attempt(self._finish) if get_rank() == 0 else ""]
            broadcast_object_list(outcome)  # nobody goes on to open parts that are being removed
            failures = outcome
        self._attempt(self._open.close)
        why = next(filter(None, failures), None)
        if why is not None:
            raise OutputError(why)

    def _attempt(self, work: Callable[[], None]) -> str:
        """Run it; what the file system refuses, as a sentence."""
        try:
            work()
        except (OSError, ValueError, MemoryError) as err:
            folder = printable((self.dump_dir or self.show_dir) / self.set_name)
            return f"{folder}: the dump of {self.set_name} could not be finished ({err})"
        return ""

    def _finish(self) -> None:
        """Join what all processes wrote."""
        folder = self._unfinished(self.set_name)
        info = dict(description=f"{_DESCRIPTION}{self.set_name}")
        if self.notice:
            info["notice"] = self.notice
        with _lines(folder, "panoptic") as lines:
            entries = list(lines)
        write_json(
            folder / "panoptic.json",
            dict(
                info=info,
                images=[entry["image"] for entry in entries],
                annotations=[entry["annotation"] for entry in entries],
                categories=describe_categories(self._vocabulary, self._category_ids),
            ),
        )
        with _lines(folder, "instances") as lines:
            _write_json_list(folder / "instances.json", lines)
        _take_place(folder, self.dump_dir / self.set_name)

    def _show(self, result: SegmentationResult) -> None:
        turn = result.image_path not in self._as_stored
        # No limit of its own: the pipeline, whose limit may be higher, has read it already.
        image = read_image(result.image_path, exif=turn, max_pixels=None)
        picture = draw_panoptic(image, result, notice=self.notice)
        write_image(self.show_dir / self.set_name, self._stems[result.image_path], picture)

    def _dump(self, index: int, sample: DetDataSample, result: SegmentationResult) -> None:
        folder = self._unfinished(self.set_name)
        stem = self._stems[result.image_path]
        image_id = self._image_ids[index]
        path = folder / "panoptic" / f"{stem}.png"
        write_panoptic_png(path, result.panoptic)
        image, annotation = describe_result(result, path.name, self._category_ids)
        entry = dict(
            image=dict(id=image_id, **image), annotation=dict(image_id=image_id, **annotation)
        )
        # ASCII only: parts of file names that are in no encoding become \udcXX
        print(index, json.dumps(entry), file=self._parts["panoptic"])
        for found in self._describe_instances(sample, image_id):
            print(index, json.dumps(found), file=self._parts["instances"])
        labels = sample.pred_sem_seg.sem_seg[0].numpy()
        path = folder / "semantic" / f"{stem}.png"
        with atomic_writer(path, durable=False) as file:
            Image.fromarray(labels.astype(self._label_dtype)).save(file, format="PNG")

    def _describe_instances(self, sample: DetDataSample, image_id: int | str) -> Iterator[dict]:
        found = sample.pred_instances
        for mask, label, score, (x1, y1, x2, y2) in zip(
            found.masks.numpy(),
            found.labels.tolist(),
            found.scores.float().tolist(),
            found.bboxes.float().tolist(),
            strict=True,
        ):
            rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            yield dict(
                image_id=image_id,
                category_id=self._category_ids[label],
                score=score,
                bbox=[x1, y1, x2 - x1, y2 - y1],
                segmentation=dict(size=rle["size"], counts=rle["counts"].decode("ascii")),
            )


class ProgressHook(Hook):
    """Advances a bar of rich, in images over all processes; its columns tell the time left."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.set_name = ""
        self._task: TaskID | None = None

    def before_test_epoch(self, runner: Runner) -> None:
        total = len(runner.test_loop.dataloader.dataset)
        self._task = self.bar.add_task(self.set_name, total=total)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[DetDataSample] | None = None,
    ) -> None:
        # Processes walk in step, about; the last round may be shorter for the others.
        self.bar.advance(self._task, len(outputs or ()) * get_world_size())
        if batch_idx + 1 == len(runner.test_loop.dataloader):
            total = len(runner.test_loop.dataloader.dataset)
            self.bar.update(
                self._task, completed=total, description=f"{self.set_name}: computing metrics"
            )

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.bar.update(self._task, description=self.set_name)


def unique_stems(paths: Sequence[str]) -> dict[str, str]:
    """A file name without extension for every path: the path's own, or, where two share theirs,
    with the folders in which they differ (``a/1.jpg``, ``b/1.jpg``: ``a_1``, ``b_1``).

    Raises:
        ValueError: paths that still cannot be told apart.
    """
    stems = {path: stem_of(path) for path in paths}
    if len(set(map(spelling, stems.values()))) < len(stems):
        common = os.path.commonpath([os.path.dirname(path) for path in paths])
        stems = {
            path: stem_of(os.path.relpath(path, common).replace(os.sep, "_")) for path in paths
        }
        if len(set(map(spelling, stems.values()))) < len(stems):
            raise ValueError(f"below {common}: images of one name with different extensions")
    return stems


def _category_ids(dataset: Any, num_classes: int) -> list[int]:
    """The dataset's category ids by class index; index + 1 for datasets that have none."""
    label_of: Mapping[int, int] = getattr(dataset, "cat2label", None) or {}
    ids = {label: category for category, label in label_of.items()}
    if len(label_of) != num_classes or sorted(ids) != list(range(num_classes)):
        return list(range(1, num_classes + 1))
    return [ids[label] for label in range(num_classes)]


def _part(folder: Path, kind: str, rank: int) -> Path:
    return folder / f".{kind}.rank{rank}.jsonl"


@contextmanager
def _lines(folder: Path, kind: str) -> Iterator[Iterator[dict]]:
    """What all processes wrote of one kind, in the order of the dataset."""
    with ExitStack() as stack:
        paths = [_part(folder, kind, rank) for rank in range(get_world_size())]
        parts = [stack.enter_context(path.open(encoding="utf-8")) for path in paths]
        merged = heapq.merge(*parts, key=lambda line: int(line.partition(" ")[0]))
        yield (json.loads(line.partition(" ")[2]) for line in merged)


def _write_json_list(path: Path, items: Iterator[dict]) -> None:
    """As json.dump of the list, which never exists: 20,000 images have millions of instances."""
    with atomic_writer(path, "w") as stream:
        stream.write("[")
        for index, item in enumerate(items):
            stream.write(",\n" if index else "\n")
            json.dump(item, stream)
        stream.write("\n]\n")


def _is_dump(folder: Path) -> bool:
    """Whether a test wrote what lies in a folder."""
    with suppress(PanopticFileError):
        content = read_json(folder / "panoptic.json", PanopticFileError)
        info = content.get("info") if isinstance(content, dict) else None
        return isinstance(info, dict) and str(info.get("description")).startswith(_DESCRIPTION)
    return False


def _take_place(made: Path, target: Path) -> None:
    """Move a finished dump to where an earlier one may be; the index goes first and comes last."""
    target.mkdir(parents=True, exist_ok=True)
    for name in reversed(_DUMPED):
        if (target / name).is_dir():
            shutil.rmtree(target / name)
        else:
            (target / name).unlink(missing_ok=True)
    for name in _DUMPED:
        if (made / name).exists():
            os.replace(made / name, target / name)
    shutil.rmtree(made)
