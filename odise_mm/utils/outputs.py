"""Where results may go: never onto an input, nor onto a file that this package did not write.

Imports no torch.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from odise_mm.errors import ImageError, OutputError
from odise_mm.utils.display import printable
from odise_mm.utils.files import FolderLock, atomic_writer
from odise_mm.utils.image import open_image
from odise_mm.utils.processes import is_first_process

MARK = "odise_mm"
"""The software that images and maps of ours name: these may be replaced by later ones."""

_LONGEST_JPEG_SIDE = 65_500
_LONGEST_NAME = 255  # bytes, on all usual file systems
_SUFFIX = 4  # ".png", ".jpg"
# Windows takes these for devices, whatever follows the first dot.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{p}{i}" for p in ("com", "lpt") for i in range(1, 10))}


class InputFiles:
    """Files that a program reads; what it writes must land on none of them.

    Files are compared as the file system does, so that links, hard links and another spelling of
    a name (where case does not matter) are seen through.

    Args:
        paths: see :meth:`add`.
    """

    def __init__(self, *paths: object) -> None:
        self._names: dict[tuple[int, int], str] = {}
        for path in paths:
            self.add(path)

    def add(self, path: object) -> None:
        """Note a file; what is no path of a file that is there is passed over."""
        if isinstance(path, (str, os.PathLike)):
            path = os.path.expanduser(path)
            with suppress(OSError, ValueError):  # no such file: nothing to lose
                info = os.stat(path)
                if not stat.S_ISDIR(info.st_mode):
                    self._names.setdefault((info.st_dev, info.st_ino), os.fspath(path))

    def add_below(self, folder: str | os.PathLike) -> None:
        """Note all files in a folder and in those below it."""
        for parent, _, names in os.walk(os.path.expanduser(folder)):
            for name in names:
                self.add(os.path.join(parent, name))

    def refuse(self, output: str | os.PathLike) -> None:
        """Look whether a file that is about to be written is an input.

        Raises:
            OutputError: it is.
        """
        with suppress(FileNotFoundError, NotADirectoryError):
            info = os.stat(output)
            name = self._names.get((info.st_dev, info.st_ino))
            if name is not None:
                raise OutputError(
                    f"{printable(output)}: would replace an input ({printable(name)}); choose "
                    "another place for the output"
                )


def check_outputs(
    outputs: Iterable[str | os.PathLike | None], inputs: InputFiles | Iterable[object] = ()
) -> None:
    """Look before long work whether files can be written where they are to go afterwards.

    Args:
        outputs: the files; None is passed over.
        inputs: what is read, see :class:`InputFiles`.

    Raises:
        OutputError: one is a folder, is an input, or cannot be made.
    """
    inputs = inputs if isinstance(inputs, InputFiles) else InputFiles(*inputs)
    for output in outputs:
        if output is None:
            continue
        path = Path(output)
        if path.is_dir():
            raise OutputError(
                f"{printable(path)}: is a folder, and a file is to be written there; remove it or "
                "choose another name"
            )
        inputs.refuse(path)
        check_folder(path.parent)


def check_folder(folder: str | os.PathLike) -> None:
    """Look whether files can be written to a folder, which need not be there yet.

    Raises:
        OutputError: it is a file, or cannot be made or written to.
    """
    folder = Path(folder)
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise OutputError(
            f"{printable(folder)}: {printable(there)} is not a folder; choose another one"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{printable(folder)}: no permission to write to {printable(there)}")


@contextmanager
def owned_folders(folders: Iterable[str | os.PathLike | None], doing: str) -> Iterator[None]:
    """Folders that results are written to, held by the first of all processes.

    Args:
        folders: made where missing; None is passed over.
        doing: what another program is told that wants one of them.

    Raises:
        OutputError: another program is writing there, or it cannot be written to.
    """
    paths = {os.path.realpath(folder) for folder in folders if folder}
    with ExitStack() as stack:
        for path in sorted(paths if is_first_process() else ()):
            check_folder(path)
            stack.enter_context(FolderLock(path, doing))
        yield


# --- images and their names -------------------------------------------------------------------


def write_marked_png(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """Write (H, W[, 3]) as a PNG file that says that it is ours, whole or not at all."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", MARK)
    with atomic_writer(path, durable=False) as file:
        Image.fromarray(pixels).save(file, format="PNG", pnginfo=info)


def write_image(folder: str | os.PathLike, stem: str, picture: np.ndarray) -> Path:
    """Write a drawn image (H, W, 3) uint8 BGR to ``folder/stem.jpg``, made where missing.

    Returns:
        Its path, which ends in .png where it is too long for a JPEG file.
    """
    path = image_path(folder, stem, picture.shape)
    if path.suffix == ".png":
        write_marked_png(path, picture[..., ::-1])
    else:
        with atomic_writer(path, durable=False) as file:  # full color resolution: crisp text
            Image.fromarray(picture[..., ::-1]).save(
                file, format="JPEG", quality=92, subsampling=0, comment=MARK.encode()
            )
    return path


def image_path(folder: str | os.PathLike, stem: str, shape: tuple[int, ...] = (0,)) -> Path:
    """Where :func:`write_picture` writes a picture of a shape."""
    suffix = ".png" if max(shape) > _LONGEST_JPEG_SIDE else ".jpg"
    return Path(folder) / f"{stem}{suffix}"


def is_ours(path: str | os.PathLike) -> bool:
    """Whether an image says that this package wrote it."""
    try:
        with open_image(path, formats=("PNG", "JPEG"), max_pixels=None) as image:
            said = image.info.get("Software") or image.info.get("comment") or ""
    except ImageError:
        return False
    return said in (MARK, MARK.encode())


def refuse_foreign(path: str | os.PathLike) -> None:
    """Look whether an image that is about to be replaced is one of ours, or empty.

    Raises:
        OutputError: there is something else of that name.
    """
    empty = os.path.isfile(path) and not os.path.getsize(path)  # as a power cut leaves it
    if os.path.lexists(path) and not empty and not is_ours(path):
        raise OutputError(
            f"{printable(path)}: is there already, and was not written by this program; choose "
            "another folder for the output, or remove it"
        )


def stem_of(path: str | os.PathLike) -> str:
    """The name of a file without extension, such that files can be called so on any system."""
    stem = os.path.splitext(os.path.basename(os.fspath(path)))[0]
    if stem.partition(".")[0].lower() in _RESERVED:
        stem = f"_{stem}"
    return _shortened(stem)


def unused_stem(stem: str, used: Iterable[str]) -> str:
    """The stem itself, or numbered from 2 where a file system could take it for a used one.

    Args:
        stem: from :func:`stem_of`.
        used: :func:`spelling` of the others.
    """
    candidate, count = stem, 1
    while spelling(candidate) in used:
        count += 1
        candidate = _shortened(stem, f"_{count}")
    return candidate


def spelling(stem: str) -> str:
    """What is the same of two stems that some file systems keep in one file."""
    return unicodedata.normalize("NFC", stem.casefold())


def _shortened(stem: str, end: str = "") -> str:
    room = _LONGEST_NAME - _SUFFIX - len(end)
    if len(os.fsencode(stem)) > room:
        digest = hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]
        while len(os.fsencode(stem)) > room - 9:
            stem = stem[:-1]
        stem = f"{stem}_{digest}"
    return stem + end
