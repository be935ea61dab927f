"""Checks and names of output files.

Outputs never overwrite an input, or an image that this package did not write. Does not import
torch.
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
"""Software name in the metadata of our images and maps, which later runs may overwrite."""

_LONGEST_JPEG_SIDE = 65_500
_LONGEST_NAME = 255  # bytes, on all common file systems
_SUFFIX = 4  # ".png", ".jpg"
# Windows treats these names as devices, whatever follows the first dot.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{p}{i}" for p in ("com", "lpt") for i in range(1, 10))}


class InputFiles:
    """The input files of a program, which its outputs must not overwrite.

    Files are identified by device and inode, so that links, hard links and other spellings of a
    name (on case-insensitive file systems) are recognized.

    Args:
        paths: See :meth:`add`.
    """

    def __init__(self, *paths: object) -> None:
        self._names: dict[tuple[int, int], str] = {}
        for path in paths:
            self.add(path)

    def add(self, path: object) -> None:
        """Add a file; anything that is not the path of an existing file is ignored."""
        if isinstance(path, (str, os.PathLike)):
            path = os.path.expanduser(path)
            with suppress(OSError, ValueError):  # a missing file needs no protection
                info = os.stat(path)
                if not stat.S_ISDIR(info.st_mode):
                    self._names.setdefault((info.st_dev, info.st_ino), os.fspath(path))

    def add_below(self, folder: str | os.PathLike) -> None:
        """Add all files in a folder and its subfolders."""
        for parent, _, names in os.walk(os.path.expanduser(folder)):
            for name in names:
                self.add(os.path.join(parent, name))

    def refuse(self, output: str | os.PathLike) -> None:
        """Check that an output is not one of the inputs.

        Raises:
            OutputError: If it is.
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
    """Check, before long work, that outputs can be written.

    Args:
        outputs: Paths of the outputs; None is ignored.
        inputs: Input files, see :class:`InputFiles`.

    Raises:
        OutputError: If an output is a folder or an input, or cannot be created.
    """
    inputs = inputs if isinstance(inputs, InputFiles) else InputFiles(*inputs)
    for output in outputs:
        if output is None:
            continue
        path = Path(output)
        if path.is_dir():
            raise OutputError(
                f"{printable(path)}: is a folder, but the output must be a file; remove it or "
                "choose another name"
            )
        inputs.refuse(path)
        check_folder(path.parent)


def check_folder(folder: str | os.PathLike) -> None:
    """Check that files can be written to a folder, which need not exist yet.

    Raises:
        OutputError: If it is a file, or cannot be created or written to.
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
    """Lock output folders in the first process.

    Args:
        folders: Folders to lock, created if missing; None is ignored.
        doing: Purpose of the lock, which is shown to other programs that need a folder.

    Raises:
        OutputError: If another program is writing to a folder, or it cannot be written to.
    """
    paths = {os.path.realpath(folder) for folder in folders if folder}
    with ExitStack() as stack:
        for path in sorted(paths if is_first_process() else ()):
            check_folder(path)
            stack.enter_context(FolderLock(path, doing))
        yield


# --- images and their names -------------------------------------------------------------------


def write_marked_png(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """Write pixels (H, W[, 3]) atomically as a PNG file that :func:`is_ours` recognizes."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", MARK)
    with atomic_writer(path, durable=False) as file:
        Image.fromarray(pixels).save(file, format="PNG", pnginfo=info)


def write_image(folder: str | os.PathLike, stem: str, image: np.ndarray) -> Path:
    """Write an image (H, W, 3) uint8 BGR to ``folder/stem.jpg`` and create the folder if missing.

    Returns:
        Path of the file. It ends in .png if the image is too large for JPEG.
    """
    path = image_path(folder, stem, image.shape)
    if path.suffix == ".png":
        write_marked_png(path, image[..., ::-1])
    else:
        with atomic_writer(path, durable=False) as file:  # no color subsampling: crisp text
            Image.fromarray(image[..., ::-1]).save(
                file, format="JPEG", quality=92, subsampling=0, comment=MARK.encode()
            )
    return path


def image_path(folder: str | os.PathLike, stem: str, shape: tuple[int, ...] = (0,)) -> Path:
    """Return the path to which :func:`write_image` writes an image of the given shape."""
    suffix = ".png" if max(shape) > _LONGEST_JPEG_SIDE else ".jpg"
    return Path(folder) / f"{stem}{suffix}"


def is_ours(path: str | os.PathLike) -> bool:
    """Return whether an image was written by this package, according to its metadata."""
    try:
        with open_image(path, formats=("PNG", "JPEG"), max_pixels=None) as image:
            software = image.info.get("Software") or image.info.get("comment") or ""
    except ImageError:
        return False
    return software in (MARK, MARK.encode())


def refuse_foreign(path: str | os.PathLike) -> None:
    """Check that a path is free, or has an image of this package or an empty file.

    Raises:
        OutputError: If the path has something else.
    """
    empty = os.path.isfile(path) and not os.path.getsize(path)  # left by a power failure
    if os.path.lexists(path) and not empty and not is_ours(path):
        raise OutputError(
            f"{printable(path)}: already exists and was not written by this program; choose "
            "another folder for the output, or remove it"
        )


def stem_of(path: str | os.PathLike) -> str:
    """Return the name of a file without extension, adapted to be valid on all systems."""
    return _valid(os.path.splitext(os.path.basename(os.fspath(path)))[0])


def nested_stem(name: str) -> str:
    """Return a file name without extension, with its folders: ``a/1`` for ``a/1.jpg``.

    All parts are adapted to be valid on all systems. Folders do not get the name of an output.

    Args:
        name: Relative name of the file, with slashes.
    """
    *folders, file = name.split("/")
    folders = [f"{f}_" if f.lower().endswith((".png", ".jpg")) else f for f in folders]
    return "/".join([*map(_valid, folders), stem_of(file)])


def _valid(name: str) -> str:
    return _shortened(f"_{name}" if name.partition(".")[0].lower() in _RESERVED else name)


def unused_stem(stem: str, used: Iterable[str]) -> str:
    """Return the stem, with a number from 2 if a file system may confuse it with a used one.

    Args:
        stem: Stem from :func:`stem_of` or :func:`nested_stem`.
        used: :func:`spelling` of the used stems.
    """
    folder, slash, name = stem.rpartition("/")
    candidate, count = stem, 1
    while spelling(candidate) in used:
        count += 1
        candidate = folder + slash + _shortened(name, f"_{count}")
    return candidate


def spelling(stem: str) -> str:
    """Return a key that is equal for stems that some file systems treat as the same name."""
    return unicodedata.normalize("NFC", stem.casefold())


def _shortened(stem: str, end: str = "") -> str:
    room = _LONGEST_NAME - _SUFFIX - len(end)
    if len(os.fsencode(stem)) > room:
        digest = hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]
        while len(os.fsencode(stem)) > room - 9:
            stem = stem[:-1]
        stem = f"{stem}_{digest}"
    return stem + end
