"""Expansion of the inferencer's image arguments to single images; nothing is decoded here."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter, UserString, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from PIL import Image

from odise_mm.utils.display import printable
from odise_mm.utils.image import (
    ImageError,
    ImageSource,
    advice_on,
    image_suffixes,
    is_encoded,
)

# Files that operating systems add to folders, in lower case.
_JUNK = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
# At least two letters, because one letter is a drive; one slash, because pathlib merges two.
_WEB_ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]+:/|data:image/)", re.IGNORECASE)
_SEPARATORS = "".join(filter(None, (os.sep, os.altsep)))
_ANY_DEPTH = re.compile(
    r"(?:^|(?<=[{0}]))\*\*(?:[{0}]+\*\*)*(?:[{0}]+|$)".format(re.escape(_SEPARATORS))
)


@dataclass(frozen=True)
class Source:
    """One image that has not been read yet."""

    name: str
    """Name for messages: the path, or "images[3]" for images in memory."""
    value: Any
    """A path, bytes, an array, a PIL image, or a value that the reader will reject."""
    path: str | None = None
    root: str | None = None
    """Folder that the path was found in: the given one, that of a given file, or the folder before
    the first wildcard of a pattern. None without a path."""
    error: ImageError | None = None
    """Why there is no image: an empty folder, or a pattern without matches."""
    failure: Exception | None = None
    """Exception that the iterable of images raised; no more images follow."""
    read: Callable[[], bytes] | None = None
    """Reads the file's bytes, from a place within an archive; ``value`` is not used then."""
    ends_batch: bool = False
    """Whether no later image runs together with this one."""


def is_single(images: Any) -> bool:
    """Return whether the argument is one image rather than a folder, a pattern or a list."""
    if isinstance(images, (str, os.PathLike)):
        path = _path_of(images)
        return not os.path.isdir(path) and not is_pattern(path)
    return _may_be_image(images)


def expand(
    images: ImageSource | Iterable[ImageSource], *, log: bool = True
) -> Sequence[Source] | Iterator[Source]:
    """Return all images of an argument, in order; folders and patterns are sorted by name.

    Images from folders and patterns that occurred before, even under another name (links), are
    skipped. Skipped files are logged.

    Args:
        images: a path, a folder (its images, not those of subfolders), a glob pattern (``**`` for
            any depth), a file's bytes, a binary file object, an array, a PIL image, or an iterable
            of these.
        log: whether to log skipped files.

    Returns:
        A list, or an iterator if ``images`` is one. The iterator is consumed when images are
        needed; if it raises, the exception is the last source's ``failure``.

    Raises:
        TypeError: ``images`` is none of these.
    """
    expansion = _Expansion(log)
    if _may_be_image(images):
        return list(expansion.of(images, "image"))
    several = _iterable(images)
    if isinstance(several, Iterator):
        return expansion.of_all(several)
    several = list(several)
    if several and not any(map(_may_be_image, several)):
        raise TypeError(f"images[0] is a {type(several[0]).__name__}; {advice_on(several[0])}")
    return list(expansion.of_all(several))


def _may_be_image(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike, np.ndarray, Image.Image)) or is_encoded(value)


def _iterable(images: Any) -> Iterable[Any]:
    """Return the argument if it is a collection of images; raise for other iterables."""
    kind = type(images).__name__
    if isinstance(images, torch.Tensor):  # iteration would yield rows
        raise TypeError(f"images is a torch tensor; {advice_on(images)}")
    if isinstance(images, Mapping):
        raise TypeError(f"images is a {kind}; give a list of images, e.g. list(images.values())")
    if isinstance(images, (set, frozenset)):
        raise TypeError(f"images is a {kind}, which has no order; give a list, e.g. sorted(images)")
    if isinstance(images, UserString):
        raise TypeError(f"images is a {kind}; give str(images)")
    if hasattr(images, "read_bytes"):  # a path inside an archive
        raise TypeError(f"images is a {kind}; {advice_on(images)}")
    if not isinstance(images, Iterable):
        raise TypeError(
            f"images is a {kind}; give a path, a folder, a glob pattern, a file's bytes, an array, "
            "a PIL image or a list of these"
        )
    return images


def _path_of(path: str | os.PathLike) -> str:
    """Return the path with ``~`` expanded, and without a trailing slash unless it is a folder."""
    text = os.path.expanduser(os.fsdecode(path))
    if os.path.isdir(text) or glob.has_magic(text):
        return text
    return text.rstrip(_SEPARATORS)


def is_pattern(path: str) -> bool:
    """Return whether a text is a glob pattern and not the name of a file."""
    return glob.has_magic(path) and not os.path.lexists(path) and not _WEB_ADDRESS.match(path)


class _Expansion:
    """Expands folders and patterns to files, each real file once."""

    def __init__(self, log: bool) -> None:
        self._log = log
        self._taken: set[str] = set()

    def of_all(self, images: Iterable[ImageSource]) -> Iterator[Source]:
        iterator = iter(images)
        for index in count():
            name = f"images[{index}]"
            try:
                image = next(iterator)
            except StopIteration:
                return
            except Exception as err:  # the caller's code can raise anything
                yield Source(name, None, failure=err)
                return
            yield from self.of(image, name)

    def of(self, image: Any, name: str) -> Iterator[Source]:
        if not isinstance(image, (str, os.PathLike)):
            filename = getattr(image, "filename" if isinstance(image, Image.Image) else "name", "")
            shown = isinstance(filename, str) and filename
            yield Source(name=f"{name} ({filename})" if shown else name, value=image)
            return
        path = _path_of(image)
        if os.path.isdir(path):
            yield from self._of_folder(path)
        elif is_pattern(path):
            yield from self._of_pattern(path)
        elif _WEB_ADDRESS.match(path) and not os.path.lexists(path):
            shown = printable(path, limit=200)
            error = ImageError(
                f"{shown}: images are not downloaded from URLs; give the path of a file or the "
                "downloaded bytes"
            )
            yield Source(shown, None, error=error)
        else:
            yield Source(path, path, path, os.path.dirname(path))

    def _of_folder(self, path: str) -> Iterator[Source]:
        shown = printable(path)
        try:
            names = sorted(os.listdir(path))
        except OSError as err:
            error = ImageError(f"{shown}: cannot list the folder ({err.strerror or err})")
            yield Source(path, None, path, error=error)
            return
        found, others = [], Counter[str]()
        for name in names:
            suffix = suffix_of(name)
            if is_junk(name) or os.path.isdir(os.path.join(path, name)):
                continue
            if suffix in image_suffixes():
                found.append(str(Path(path, name)))
            elif not name.startswith("."):
                others[suffix] += 1
        if not found:
            kinds = ", ".join(sorted(image_suffixes()))
            error = ImageError(f"{shown}: no images in this folder (searched for {kinds})")
            yield Source(path, None, path, error=error)
        yield from self._new_ones(found, path, shown, others)

    def _of_pattern(self, pattern: str) -> Iterator[Source]:
        shown = printable(pattern)
        found = sorted(
            path
            for path in set(matches_of(pattern))
            if not os.path.isdir(path) and not is_junk(os.path.basename(path))
        )
        if not found:
            error = ImageError(f"{shown}: no file matches this pattern")
            yield Source(pattern, None, pattern, error=error)
        root = pattern
        while glob.has_magic(root):
            root = os.path.dirname(root)
        yield from self._new_ones(found, root, shown, Counter())

    def _new_ones(
        self, found: Sequence[str], root: str, shown: str, others: Counter[str]
    ) -> Iterator[Source]:
        files = []
        for file in found:
            real = os.path.realpath(file)
            if real not in self._taken:
                self._taken.add(real)
                files.append(file)
        skipped = _describe_skipped(others, len(found) - len(files))
        if skipped and self._log:
            print_log(f"{shown}: skipped {skipped}", logger="current")
        for file in files:
            yield Source(file, file, file, root)


def _describe_skipped(others: Counter[str], duplicates: int) -> str:
    parts = []
    if others:
        kinds = ", ".join(
            f"{count} {printable(suffix) or 'without extension'}"
            for suffix, count in sorted(others.items(), key=lambda item: (-item[1], item[0]))
        )
        parts.append(f"{_counted(others.total(), 'file')} of other types ({kinds})")
    if duplicates:
        parts.append(f"{_counted(duplicates, 'duplicate image')}")
    return " and ".join(parts)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def suffix_of(name: str) -> str:
    """Return the extension in lower case: ``.jpg`` for ``a.JPG`` and ``..jpg``, "" for ``.jpg``."""
    stem, dot, end = name.rpartition(".")
    return f".{end.lower()}" if stem and end else ""


def is_junk(name: str) -> bool:
    """Return whether an operating system added a file of this name to a folder."""
    return name.startswith("._") or name.lower() in _JUNK


def matches_of(pattern: str) -> Iterator[str]:
    """Like ``glob.iglob(pattern, recursive=True)``, which would follow cyclic links 40 times."""
    stars = _ANY_DEPTH.search(pattern)
    if stars is None:
        yield from glob.iglob(pattern)
        return
    head, tail = pattern[: stars.start()], pattern[stars.end() :] or "*"
    wild = glob.has_magic(head)
    for root in glob.iglob(head) if wild else [head]:
        if not (wild and _leads_back(root)):
            for folder in folders_below(root):
                yield from matches_of(os.path.join(glob.escape(folder), tail))


def folders_below(root: str) -> Iterator[str]:
    """Yield a folder and its subfolders at any depth, each real folder once.

    Hidden folders are skipped, as in every pattern, and links to a parent folder, too.
    """
    seen: set[str] = set()
    links = deque([root])  # followed last, so that folders are found by their own path first
    while links:
        folders = [links.popleft()]
        while folders:
            folder = folders.pop()
            real = os.path.realpath(folder or os.curdir)
            if real in seen or not os.path.isdir(real):
                continue
            seen.add(real)
            yield folder
            try:
                names = sorted(os.listdir(real))
            except OSError as err:
                print_log(f"{printable(folder)}: skipped ({err.strerror})", logger="current")
                continue
            for path in (os.path.join(folder, name) for name in names if name[0] != "."):
                if os.path.isdir(path) and not _leads_back(path):
                    (links if os.path.islink(path) else folders).append(path)


def _leads_back(path: str) -> bool:
    """Return whether a path is a link to one of its parent folders."""
    if not os.path.islink(path.rstrip(_SEPARATORS)):
        return False
    place, target = (os.path.realpath(p) for p in (os.path.dirname(path.rstrip(_SEPARATORS)), path))
    return Path(place).is_relative_to(target)
