"""Hooks of a test run that write result files and images and show a progress bar."""

from __future__ import annotations

import heapq
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

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
from odise_mm.structures.geometry import encode_mask
from odise_mm.utils.display import printable
from odise_mm.utils.files import atomic_writer, read_json, write_json
from odise_mm.utils.image import read_image
from odise_mm.utils.outputs import (
    InputFiles,
    check_folder,
    image_path,
    nested_stem,
    refuse_foreign,
    spelling,
    unused_stem,
    write_image,
)
from odise_mm.utils.settings import check_whole
from odise_mm.visualization import draw_panoptic

_TASKS = ("panoptic", "semantic", "instance")
_DUMPED = ("panoptic", "semantic", "instances.json", "panoptic.json")
_DESCRIPTION = "results of odise_mm on "


@HOOKS.register_module()
class ResultWriterHook(Hook):
    """Write the results of a test run; each process writes those of its own images.

    ``dump_dir/<set name>`` gets

    - ``panoptic/*.png`` and ``panoptic.json`` (COCO's panoptic format),
    - ``instances.json`` (COCO's results format),
    - ``semantic/*.png`` (class indices; 16 bits for more than 255 classes, because the largest
      value means "ignored").

    Names of files and images keep the folders of the images, relative to the folder that contains
    all images of the set.

    Category ids are the dataset's if it has any, else class index + 1. Image ids are the dataset's
    if they are unique, else the index of the image. The files appear when the set is finished and
    replace an earlier dump, which stays unchanged if the run ends early. They do not depend on the
    number of processes. While dumping, all three results are made, whatever the metrics need.

    ``show_dir/<set name>`` gets images with the panoptic result drawn on them, one after the other.

    Files that this hook did not write are never replaced.

    Args:
        dump_dir, show_dir: output folders, created if missing. None writes nothing.
        show_interval: draw every n-th image of the set, starting with the first.
        notice: text for a banner above images, and for ``info`` in the JSON file.
    """

    priority = "LOWEST"  # metrics are logged before the dump is finished

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
        """Name of the current test set, which is also the name of its output folder."""
        self._open = ExitStack()
        self._failure = ""
        """Why writing this set's results was stopped; the test itself continues."""

    def check(self, set_name: str) -> None:
        """Check that a set's results can be written, before a long evaluation starts.

        Raises:
            OutputError: a folder cannot be created or written to, or contains files that this hook
                did not write.
        """
        if self.show_dir is not None:
            check_folder(self.show_dir / set_name)
        if self.dump_dir is not None:
            folder = self.dump_dir / set_name
            check_folder(folder)
            there = [name for name in _DUMPED if os.path.lexists(folder / name)]
            if there and not _is_dump(folder) and not self._unfinished(set_name).exists():
                raise OutputError(
                    f"{printable(folder)}: contains {' and '.join(there)}, which no test run "
                    "wrote; choose another folder for the dump, or remove them"
                )

    def _unfinished(self, set_name: str) -> Path:
        """Return the temporary folder of a set's dump."""
        return self.dump_dir / f".{set_name}.unfinished"

    def before_test_epoch(self, runner: Runner) -> None:
        """Prepare the folders and files of a test set.

        Raises:
            ConfigError: the vocabulary has too many classes for label maps, or the dataset repeats
                images.
            OutputError: see :meth:`check`, or an output would replace an input or a foreign file.
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
                f"{self.set_name}: the dataset repeats images, so their results would overwrite "
                "each other: test the dataset that is repeated instead"
            )
        ids = [info.get("img_id", index) for index, info in enumerate(infos)]
        # Concatenated datasets may share ids, but ids in a result file must be unique.
        self._image_ids = ids if len(set(ids)) == len(ids) else list(range(len(ids)))
        self._names = relative_names(paths)
        self._stems = unique_stems(self._names)
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
            barrier()  # until the empty folder exists
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
        """Write the results of a batch."""
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
                if batch_idx == 0:  # nothing is lost yet
                    raise
                self._failure = (
                    f"results of {printable(sample.img_path)} could not be written ({err})"
                )
                runner.logger.error(f"{self._failure}; the test continues without writing results")

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Finish a set's files.

        Raises:
            OutputError: results could not be written. It is raised in all processes, even if only
                one of them failed.
        """
        failures = all_gather_object(self._failure or self._attempt(self._open.close))
        if self.dump_dir is not None and not any(failures):  # all parts are complete
            outcome = [self._attempt(self._finish) if get_rank() == 0 else ""]
            broadcast_object_list(outcome)  # wait before parts are removed
            failures = outcome
        self._attempt(self._open.close)
        why = next(filter(None, failures), None)
        if why is not None:
            raise OutputError(why)

    def _attempt(self, work: Callable[[], None]) -> str:
        """Run ``work`` and return the error message of a failure, or an empty string."""
        try:
            work()
        except (OSError, ValueError, MemoryError) as err:
            folder = printable((self.dump_dir or self.show_dir) / self.set_name)
            return f"{folder}: the dump of {self.set_name} could not be finished ({err})"
        return ""

    def _finish(self) -> None:
        """Merge the parts of all processes."""
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
        # No pixel limit here: the pipeline has applied its own when it read the image.
        image = read_image(result.image_path, exif=turn, max_pixels=None)
        drawing = draw_panoptic(image, result, notice=self.notice)
        write_image(self.show_dir / self.set_name, self._stems[result.image_path], drawing)

    def _dump(self, index: int, sample: DetDataSample, result: SegmentationResult) -> None:
        folder = self._unfinished(self.set_name)
        stem = self._stems[result.image_path]
        image_id = self._image_ids[index]
        path = folder / "panoptic" / f"{stem}.png"
        write_panoptic_png(path, result.panoptic)
        image, annotation = describe_result(
            result, f"{stem}.png", self._category_ids, self._names[result.image_path]
        )
        entry = dict(
            image=dict(id=image_id, **image), annotation=dict(image_id=image_id, **annotation)
        )
        # ASCII only: bytes of file names that cannot be decoded become \udcXX
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
            rle = encode_mask(mask)
            yield dict(
                image_id=image_id,
                category_id=self._category_ids[label],
                score=score,
                bbox=[x1, y1, x2 - x1, y2 - y1],
                segmentation=dict(size=rle["size"], counts=rle["counts"].decode("ascii")),
            )


class ProgressHook(Hook):
    """Show the number of evaluated images, over all processes, in a progress bar of rich.

    Args:
        bar: the progress bar.
    """

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.set_name = ""
        self._task: TaskID | None = None

    def before_test_epoch(self, runner: Runner) -> None:
        """Add a task for the test set."""
        total = len(runner.test_loop.dataloader.dataset)
        self._task = self.bar.add_task(self.set_name, total=total)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[DetDataSample] | None = None,
    ) -> None:
        """Advance by the images of a batch."""
        # Processes are roughly in step; in the last round, other processes may have fewer images.
        self.bar.advance(self._task, len(outputs or ()) * get_world_size())
        if batch_idx + 1 == len(runner.test_loop.dataloader):
            total = len(runner.test_loop.dataloader.dataset)
            self.bar.update(
                self._task, completed=total, description=f"{self.set_name}: computing metrics"
            )

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Show the name of the finished test set."""
        self.bar.update(self._task, description=self.set_name)


def relative_names(paths: Sequence[str]) -> dict[str, str]:
    """Return the name of each path, relative to the folder of all paths, with slashes."""
    folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
    common = os.path.commonpath(folders) if folders else None
    return {path: Path(os.path.relpath(path, common)).as_posix() for path in paths}


def unique_stems(names: Mapping[str, str]) -> dict[str, str]:
    """Return a unique file name without extension, with its folders, for each path.

    Args:
        names: Names by path, from :func:`relative_names`.
    """
    stems: dict[str, str] = {}
    used: set[str] = set()
    for path, name in names.items():
        stems[path] = unused_stem(nested_stem(name), used)
        used.add(spelling(stems[path]))
    return stems


def _category_ids(dataset: Any, num_classes: int) -> list[int]:
    """Return category ids by class index: the dataset's, or index + 1 if it has none."""
    label_of: Mapping[int, int] = getattr(dataset, "cat2label", None) or {}
    ids = {label: category for category, label in label_of.items()}
    if len(label_of) != num_classes or sorted(ids) != list(range(num_classes)):
        return list(range(1, num_classes + 1))
    return [ids[label] for label in range(num_classes)]


def _part(folder: Path, kind: str, rank: int) -> Path:
    return folder / f".{kind}.rank{rank}.jsonl"


@contextmanager
def _lines(folder: Path, kind: str) -> Iterator[Iterator[dict]]:
    """Read the parts of all processes of one kind, merged in the order of the dataset."""
    with ExitStack() as stack:
        paths = [_part(folder, kind, rank) for rank in range(get_world_size())]
        parts = [stack.enter_context(path.open(encoding="utf-8")) for path in paths]
        merged = heapq.merge(*parts, key=lambda line: int(line.partition(" ")[0]))
        yield (json.loads(line.partition(" ")[2]) for line in merged)


def _write_json_list(path: Path, items: Iterator[dict]) -> None:
    """Write items as a JSON list without holding them in memory; there may be millions."""
    with atomic_writer(path, "w") as stream:
        stream.write("[")
        for index, item in enumerate(items):
            stream.write(",\n" if index else "\n")
            json.dump(item, stream)
        stream.write("\n]\n")


def _is_dump(folder: Path) -> bool:
    """Return whether a folder contains the dump of a test run."""
    with suppress(PanopticFileError):
        content = read_json(folder / "panoptic.json", PanopticFileError)
        info = content.get("info") if isinstance(content, dict) else None
        return isinstance(info, dict) and str(info.get("description")).startswith(_DESCRIPTION)
    return False


def _take_place(made: Path, target: Path) -> None:
    """Move a finished dump to its folder and replace an earlier one.

    ``panoptic.json``, by which :func:`_is_dump` recognizes a dump, is removed first and moved last.
    """
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
