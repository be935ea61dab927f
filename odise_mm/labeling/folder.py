"""The output folder of a labeling run: plan, finished shards, and the index made of them.

- ``plan.json``: settings and number of images per shard; ``plan/000000.jsonl``: the images of a
  shard.
- ``model.json``: model and classes.
- ``shards/000000/``: a finished shard. ``images.jsonl`` has a line per image, and every format has
  a folder of its name. A shard gets its name when it is complete and on disk, so it is there as a
  whole or not at all, whenever a process is killed.
- ``index.jsonl`` and ``failed.jsonl``: made from the finished shards.
- ``duplicates.jsonl``: images that the sources have more than once.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from odise_mm.annotations.panoptic_io import describe_categories
from odise_mm.errors import OutputError
from odise_mm.io import FORMATS
from odise_mm.labeling.listing import Item, Listing, from_json, to_json
from odise_mm.structures import SegmentationResult
from odise_mm.utils.display import printable
from odise_mm.utils.files import (
    atomic_writer,
    flush_to_disk,
    read_json,
    remove_leftovers,
    write_json,
)
from odise_mm.utils.outputs import nested_stem, spelling, unused_stem
from odise_mm.vocabulary import Vocabulary

IMAGES = "images.jsonl"
_PLAN = "plan.json"
_MODEL = "model.json"
_VERSION = 1
_SHARD = re.compile(r"[0-9]{6,}")


class LabelFolder:
    """The output folder of a labeling run.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.shards = self.path / "shards"
        self.counts: list[int] = []
        """Numbers of images of all shards."""
        self.root = Path()
        """Folder that the names of images are relative to."""

    # --- the plan -------------------------------------------------------------------------------

    def plan(
        self,
        listing: Listing,
        settings: Mapping[str, Any],
        shard_size: int,
        retry_failed: bool = False,
    ) -> None:
        """Plan the shards of a new run, or add images that are new to the plan of an earlier one.

        Only one process may do this at a time.

        Args:
            listing: all images.
            settings: what all shards must have in common, by name.
            shard_size: number of images per shard, for the shards that are planned now.
            retry_failed: whether to plan failed images again.

        Raises:
            OutputError: the folder has results with other settings, or of something else.
        """
        settings = json.loads(json.dumps(dict(settings, root=str(listing.root)), default=str))
        if (self.path / _PLAN).exists():
            self.load()
            self._refuse_other(settings)
        else:
            foreign = [name for name in ("plan", "shards") if (self.path / name).exists()]
            if foreign:
                raise OutputError(
                    f"{printable(self.path)}: contains {' and '.join(foreign)}, but no {_PLAN}; "
                    "choose another folder"
                )
            self.root = listing.root
        self.shards.mkdir(parents=True, exist_ok=True)
        self.clean()
        known = set(self._planned_names())
        for name, first in listing.duplicates:  # the other one may be known
            if name in known:
                known.add(first)
        new = [item for item in listing.items if item.name not in known]
        if retry_failed:
            failed = self._failed_names()
            new += [item for item in listing.items if item.name in failed]
        for start in range(0, len(new), shard_size):
            share = new[start : start + shard_size]
            with atomic_writer(self._plan_of(len(self.counts)), "w") as file:
                for item in share:
                    print(json.dumps(to_json(item)), file=file)
            self.counts.append(len(share))
        duplicates = self.path / "duplicates.jsonl"
        if listing.duplicates or duplicates.exists():
            with atomic_writer(duplicates, "w") as file:
                for name, first in listing.duplicates:
                    print(json.dumps(dict(image=name, same_as=first)), file=file)
        content = dict(version=_VERSION, settings=settings, root=str(self.root), images=self.counts)
        write_json(self.path / _PLAN, content)

    def load(self) -> None:
        """Read the plan.

        Raises:
            OutputError: it is missing or damaged.
        """
        content = self._plan_file()
        self.counts, self.root = list(content["images"]), Path(content["root"])

    def _plan_file(self) -> dict[str, Any]:
        path = self.path / _PLAN
        content = read_json(path, OutputError, "plan of a labeling run")
        if not isinstance(content, dict) or content.get("version") != _VERSION:
            raise OutputError(
                f"{printable(path)}: not a plan of this version of odise_mm; choose another folder"
            )
        return content

    def _refuse_other(self, settings: Mapping[str, Any]) -> None:
        _refuse_other(self.path, self._plan_file()["settings"], settings)

    def _plan_of(self, shard: int) -> Path:
        return self.path / "plan" / f"{shard:06d}.jsonl"

    def items(self, shard: int) -> list[Item]:
        """Return the images of a shard."""
        with open(self._plan_of(shard), encoding="utf-8") as file:
            return [from_json(json.loads(line)) for line in file]

    def _planned_names(self) -> Iterator[str]:
        for shard in range(len(self.counts)):
            yield from (item.name for item in self.items(shard))

    def _failed_names(self) -> set[str]:
        """Return the images that failed, and that no unfinished shard has."""
        failed: set[str] = set()
        finished = self.finished()
        for shard in range(len(self.counts)):
            if shard in finished:
                for line in self._images_of(shard):
                    (failed.add if "error" in line else failed.discard)(line["image"])
            else:
                failed.difference_update(item.name for item in self.items(shard))
        return failed

    def agree(
        self, settings: Mapping[str, Any], vocabulary: Vocabulary, notice: str | None
    ) -> None:
        """Store what the model and the classes are, or compare with what is stored.

        Raises:
            OutputError: the shards are made by another model or with other classes.
        """
        path = self.path / _MODEL
        if path.exists():
            content = read_json(path, OutputError, "description of the model")
            _refuse_other(self.path, content["settings"], settings)
            return
        content = dict(settings=settings, categories=describe_categories(vocabulary))
        write_json(path, content if notice is None else dict(content, notice=notice), indent=1)

    def notice(self) -> str | None:
        """Return what users of the labels have to know."""
        path = self.path / _MODEL
        return read_json(path, OutputError).get("notice") if path.exists() else None

    # --- the shards -----------------------------------------------------------------------------

    def finished(self) -> set[int]:
        """Return the numbers of the finished shards."""
        names = os.listdir(self.shards)
        found = {int(name) for name in names if _SHARD.fullmatch(name)}
        return found & set(range(len(self.counts)))

    def unfinished(self) -> list[int]:
        """Return the numbers of the other shards, in order."""
        return sorted(set(range(len(self.counts))) - self.finished())

    def _folder_of(self, shard: int) -> Path:
        return self.shards / f"{shard:06d}"

    def _images_of(self, shard: int) -> Iterator[dict[str, Any]]:
        with open(self._folder_of(shard) / IMAGES, encoding="utf-8") as file:
            yield from map(json.loads, file)

    def clean(self) -> None:
        """Remove what killed processes left; no process may be writing."""
        for folder in self.shards.glob(".*.tmp"):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.path, self.path / "plan"):
            remove_leftovers(folder)

    # --- the index ------------------------------------------------------------------------------

    def write_index(self) -> tuple[int, int, int]:
        """Write the index and the list of failed images, from the finished shards.

        Returns:
            The numbers of labeled, failed and unfinished images.
        """
        finished = sorted(self.finished())
        latest = self._latest(finished)
        labeled = failed = 0
        with (
            atomic_writer(self.path / "index.jsonl", "w") as index,
            atomic_writer(self.path / "failed.jsonl", "w") as failures,
        ):
            for shard in finished:
                for line in self._images_of(shard):
                    if latest.get(line["image"], shard) != shard:
                        continue
                    text = json.dumps(dict(line, shard=f"{shard:06d}"))
                    print(text, file=index)
                    if "error" in line:
                        failed += 1
                        print(text, file=failures)
                    else:
                        labeled += 1
        return labeled, failed, sum(self.counts[shard] for shard in self.unfinished())

    def _latest(self, finished: Sequence[int]) -> dict[str, int]:
        """Return the last shard of each image that failed and was tried again."""
        failed = {
            line["image"]
            for shard in finished
            for line in self._images_of(shard)
            if "error" in line
        }
        return {
            line["image"]: shard
            for shard in finished
            for line in self._images_of(shard)
            if line["image"] in failed
        }


def _refuse_other(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    other = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if other:
        lines = [f"{key} ({before.get(key)}; now {now.get(key)})" for key in other]
        raise OutputError(
            f"{printable(folder)}: contains labels that were made with different settings: "
            f"{printable(', '.join(lines), limit=600)}; use the same command to continue, or "
            "choose another folder"
        )


class ShardWriter:
    """Writes a shard under a temporary name: ``with ShardWriter(...) as shard: shard.add(...)``.

    The shard gets its name at the end of the block. If an exception leaves the block, or another
    process has finished the shard in the meantime, nothing is left.

    Args:
        folder: the output folder.
        shard: number of the shard.
        formats: names in :data:`odise_mm.io.FORMATS`.
        vocabulary: the classes.
    """

    def __init__(
        self, folder: LabelFolder, shard: int, formats: Sequence[str], vocabulary: Vocabulary
    ) -> None:
        self.target = folder.shards / f"{shard:06d}"
        self.temporary = folder.shards / f".{shard:06d}.{secrets.token_hex(4)}.tmp"
        self.formats, self.vocabulary = formats, vocabulary
        self._stems: set[str] = set()
        self._open = ExitStack()

    def __enter__(self) -> ShardWriter:
        self._open.callback(shutil.rmtree, self.temporary, ignore_errors=True)
        self.writers = []
        for name in self.formats:
            (self.temporary / name).mkdir(parents=True)
            self.writers.append(FORMATS[name](self.temporary / name, self.vocabulary))
        file: IO[str] = open(self.temporary / IMAGES, "w", encoding="utf-8")
        self._images = self._open.enter_context(file)
        return self

    def add(self, result: SegmentationResult) -> str | None:
        """Write the segments of an image, or why there are none.

        Returns:
            The reason if the image failed.
        """
        error = result.error
        if error is None:
            stem = unused_stem(nested_stem(result.image_name), self._stems)
            self._stems.add(spelling(stem))
            try:
                for writer in self.writers:
                    writer.add(result, stem)
            except OutputError as problem:  # the image does not fit into a format
                error = problem
        line: dict[str, Any] = dict(image=result.image_name)
        if error is None:
            size = dict(height=result.height, width=result.width)
            line |= size | dict(segments=len(result.segments))
        else:
            line |= dict(error=printable(error))
        # ASCII only: undecodable bytes of file names become \udcXX
        print(json.dumps(line), file=self._images)
        return None if error is None else line["error"]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._open:
            if kind is None:
                self._finish()

    def _finish(self) -> None:
        for writer in self.writers:
            writer.close()
        self._images.close()
        for parent, _, names in os.walk(self.temporary, topdown=False):
            for name in names:
                flush_to_disk(Path(parent, name))
            flush_to_disk(Path(parent))
        try:
            os.rename(self.temporary, self.target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        flush_to_disk(self.target.parent)
