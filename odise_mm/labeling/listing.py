"""Lists of the images in folders, lists, patterns, tar and parquet files; nothing is decoded."""

from __future__ import annotations

import os
import tarfile
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.logging import print_log

from odise_mm.apis.sources import (
    Source,
    folders_below,
    is_junk,
    is_pattern,
    matches_of,
    suffix_of,
)
from odise_mm.errors import DatasetError, ImageError, OutputError
from odise_mm.utils.display import printable, some
from odise_mm.utils.files import path_inside, regular_file
from odise_mm.utils.image import image_suffixes

if TYPE_CHECKING:
    import pyarrow

LISTS = (".txt", ".lst", ".list")
"""Extensions of text files with one path per line."""
COLUMNS = ("image", "path", "image_path", "file_name", "filename", "file")
"""Names of columns with images or paths, in the order in which they are looked for."""
_COMPRESSED = (".tgz", ".gz", ".bz2", ".xz", ".zst")
_MOST_BYTES = 1 << 30  # of an image in an archive


@dataclass(frozen=True, slots=True)
class Item:
    """An image and where its file is."""

    name: str
    """Path relative to the root, with slashes; for images in archives, archive and member."""
    file: str
    """Path of the image or the archive, relative to the root."""
    tar: tuple[int, int] | None = None
    """Offset and number of the bytes in a tar file."""
    parquet: tuple[str, int, int] | None = None
    """Column, row group, and row in this group, of a parquet file."""
    error: str | None = None
    """Why there is no image."""

    def source(self, root: Path, ends_batch: bool) -> Source:
        """Return what the inferencer reads."""
        path = os.path.join(root, self.file)
        read: Callable[[], bytes] | None = None
        error = None if self.error is None else ImageError(f"{printable(self.name)}: {self.error}")
        if not _is_utf8(self.name):
            error = ImageError(f"{printable(self.name)}: the name is not UTF-8; rename the file")
        if self.tar is not None:
            read = partial(_read_tar, self.name, path, *self.tar)
        elif self.parquet is not None:
            read = partial(_GROUPS.read, self.name, path, *self.parquet)
        value = path if read is None else None
        return Source(self.name, value, self.name, None, error, None, read, ends_batch)


@dataclass
class Listing:
    """All images of the sources."""

    root: Path
    """Folder that names are relative to."""
    items: list[Item] = field(default_factory=list)
    """The images, each once."""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """Names of images that are there again, and the name under which they are in ``items``."""


def list_images(
    sources: Sequence[str | os.PathLike],
    root: str | os.PathLike | None = None,
    column: str | None = None,
) -> Listing:
    """List the images of all sources, in a fixed order.

    A source is

    - a folder, with its subfolders: its images; without images, its tar files; without tar files,
      its parquet files;
    - a text file (.txt, .lst, .list) with a path per line, relative to its folder or ``root``;
    - a tar file, such as a shard of WebDataset. Its members are read in place;
    - a parquet file with a column of paths or of encoded images;
    - an image file, or a glob pattern of files of all these kinds.

    Args:
        sources: paths and patterns.
        root: folder that names are relative to, and that no path may leave. None: the folder that
            contains all sources.
        column: column of parquet files. None: the first of :data:`COLUMNS`, or the only column of
            bytes.

    Raises:
        DatasetError: a source is missing, empty or of another kind, or a path in a list leads
            outside its folder.
        OutputError: pyarrow is needed and missing.
    """
    paths = [os.path.expanduser(os.fspath(source)) for source in sources]
    if not paths:
        raise DatasetError("no sources: give a folder, a list, a pattern, tar or parquet files")
    base = Path(os.path.abspath(root if root is not None else _common_folder(paths)))
    return _Lister(base, root is not None, column).of_all(paths)


def _common_folder(paths: Iterable[str]) -> str:
    folders = set()
    for path in paths:
        while is_pattern(path):
            path = os.path.dirname(path)
        folders.add(os.path.abspath(path if os.path.isdir(path) else os.path.dirname(path)))
    try:
        return os.path.commonpath(folders)
    except ValueError as error:
        raise DatasetError(f"the sources have no common folder ({error}); label one drive") from (
            error
        )


class _Lister:
    """Collects the images of sources."""

    def __init__(self, root: Path, root_is_given: bool, column: str | None) -> None:
        self.listing = Listing(root)
        self.root = root
        self.root_is_given = root_is_given
        self.column = column
        self._first: dict[str, str] = {}
        self._real: dict[str, str] = {}

    def of_all(self, paths: Iterable[str]) -> Listing:
        for path in paths:
            if os.path.isdir(path):
                self.of_folder(path)
            elif is_pattern(path):
                found = sorted(
                    p
                    for p in set(matches_of(path))
                    if not os.path.isdir(p) and not is_junk(os.path.basename(p))
                )
                if not found:
                    raise DatasetError(f"{printable(path)}: no file matches this pattern")
                for file in found:
                    self.of_file(file)
            else:
                self.of_file(str(regular_file(path, DatasetError, "source of images")))
        return self.listing

    def of_folder(self, folder: str) -> None:
        found: dict[str, list[str]] = {"images": [], "tar files": [], "parquet files": []}
        for parent in sorted(folders_below(folder)):
            with os.scandir(parent) as entries:
                names = sorted(e.name for e in entries if not e.is_dir() and e.name[0] != ".")
            for name in names:
                suffix = suffix_of(name)
                if suffix in image_suffixes() and not is_junk(name):
                    found["images"].append(os.path.join(parent, name))
                elif suffix in (".tar", ".parquet"):
                    found[f"{suffix[1:]} files"].append(os.path.join(parent, name))
        kind = next((kind for kind, files in found.items() if files), None)
        if kind is None:
            raise DatasetError(
                f"{printable(folder)}: no images, tar files or parquet files in this folder and "
                "its subfolders"
            )
        others = [f"{len(files):,} {name}" for name, files in found.items() if files]
        if len(others) > 1:
            print_log(
                f"{printable(folder)}: contains {' and '.join(others)}; only its {kind} are used. "
                "Name the other files to use them, too",
                logger="current",
            )
        for file in found[kind]:
            self.of_file(file)

    def of_file(self, path: str, in_a_list: bool = False) -> None:
        suffix = suffix_of(os.path.basename(path))
        if suffix == ".tar":
            self.of_tar(path)
        elif suffix == ".parquet":
            self.of_parquet(path)
        elif in_a_list or suffix in image_suffixes():
            self.add(Item(self.name_of(path), self.name_of(path)), self.real(path))
        elif suffix in LISTS:
            self.of_list(path)
        else:
            kinds = ", ".join((".tar", ".parquet", *LISTS))
            advice = " Unpack it to .tar" if suffix in _COMPRESSED else ""
            raise DatasetError(f"{printable(path)}: neither an image nor one of {kinds}.{advice}")

    def of_list(self, path: str) -> None:
        base = self.root if self.root_is_given else Path(os.path.dirname(os.path.abspath(path)))
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                name = line.rstrip("\r\n")
                if name.strip():
                    where = f"{printable(path)}: line {number}"
                    self.of_file(self.inside(base, name, where), in_a_list=True)

    def inside(self, base: Path, name: Any, where: str) -> str:
        """Return the path of a name from a file."""
        try:
            return str(path_inside(base, name, DatasetError, where))
        except DatasetError as error:
            raise DatasetError(f"{error}. Choose the folder of all images with --root") from None

    def of_tar(self, path: str) -> None:
        """Add the images among the members, as WebDataset's shards have them."""
        file, size, real = self.name_of(path), os.path.getsize(path), self.real(path)
        count = 0
        names: set[str] = set()
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if not (member.isreg() and suffix_of(member.name) in image_suffixes()):
                        continue
                    if member.issparse() or is_junk(os.path.basename(member.name)):
                        continue
                    count += 1
                    place = (member.offset_data, member.size)
                    name, error = f"{file}/{member.name}", None
                    if _leaves(member.name):
                        name, error = f"{file}/{count}", "the member's name leads outside the file"
                    elif name in names:  # a tar file may have a name twice
                        name = f"{name} ({count})"
                    names.add(name)
                    if sum(place) > size:
                        error = "the tar file ends before this image; copy it again"
                    self.add(Item(name, file, tar=place, error=error), f"{real}:{place[0]}")
        except (tarfile.TarError, OSError, ValueError) as error:
            why = f"not a tar file, or damaged after {count} images ({printable(error)})"
            self.add(Item(file, file, error=why), real)
            return
        if not count:
            self.add(Item(file, file, error="the tar file has no images"), real)

    def of_parquet(self, path: str) -> None:
        """Add the rows' images, or the files that they name."""
        parquet = _pyarrow_parquet()
        import pyarrow

        shown = printable(path)
        try:
            table = parquet.ParquetFile(path)
            column = self.column_of(table.schema_arrow, shown)
            kind = table.schema_arrow.field(column).type
            if _is_text(kind):
                base = self.root if self.root_is_given else Path(os.path.abspath(path)).parent
                rows = (
                    value
                    for batch in table.iter_batches(columns=[column])
                    for value in batch.column(0).to_pylist()
                )
                for number, name in enumerate(rows):
                    where = f"{shown}: row {number} of {column!r}"
                    self.of_file(self.inside(base, name, where), in_a_list=True)
                return
            file, real, count = self.name_of(path), self.real(path), 0
            for group in range(table.num_row_groups):
                for row in range(table.metadata.row_group(group).num_rows):
                    place = (column, group, row)
                    self.add(Item(f"{file}/{count}", file, parquet=place), f"{real}:{count}")
                    count += 1
        except pyarrow.ArrowException as error:
            raise DatasetError(
                f"{shown}: not a parquet file, or damaged ({printable(error, 200)})"
            ) from error

    def column_of(self, schema: pyarrow.Schema, shown: str) -> str:
        """Return the column with images or paths."""
        usable = [f.name for f in schema if _is_bytes(f.type) or _is_text(f.type)]
        images = [f.name for f in schema if _is_bytes(f.type)]
        if self.column is not None:
            if self.column in usable:
                return self.column
            raise DatasetError(
                f"{shown}: no column {self.column!r} of texts or bytes; columns: "
                f"{some(schema.names)}"
            )
        named = [name for name in COLUMNS if name in usable]
        if named:
            return named[0]
        if len(images) == 1:
            return images[0]
        raise DatasetError(
            f"{shown}: which column has the images or paths? Choose it with --column; columns: "
            f"{some(schema.names)}"
        )

    def name_of(self, path: str) -> str:
        relative = os.path.relpath(os.path.abspath(path), self.root)
        if relative.startswith(os.pardir + os.sep):
            raise DatasetError(
                f"{printable(path)} is outside {printable(self.root)}; choose another --root"
            )
        return relative.replace(os.sep, "/")

    def real(self, path: str) -> str:
        """Return the path without links; those of a folder are resolved once."""
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, name = os.path.split(os.path.abspath(path))
        if folder not in self._real:
            self._real[folder] = os.path.realpath(folder)
        return os.path.join(self._real[folder], name)

    def add(self, item: Item, identity: str) -> None:
        first = self._first.setdefault(identity, item.name)
        if first is item.name:
            self.listing.items.append(item)
        else:
            self.listing.duplicates.append((item.name, first))


def _leaves(name: str) -> bool:
    """Return whether a member's name leads outside its archive."""
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or os.path.isabs(name) or name[:1] in ("/", "\\")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_tar(name: str, path: str, offset: int, size: int) -> bytes:
    """Return the bytes of a member."""
    shown = printable(name)
    if size > _MOST_BYTES:
        raise ImageError(f"{shown}: {size:,} bytes are too many for an image")
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise ImageError(f"{shown}: cannot be read ({error.strerror or error})") from error
    if len(content) < size:
        raise ImageError(f"{shown}: the tar file ends before this image; copy it again")
    return content


def _pyarrow_parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise OutputError(
            f"parquet: the package pyarrow cannot be imported ({error}): "
            "pip install 'odise_mm[parquet]'"
        ) from error
    return parquet


def _is_text(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind)


def _is_bytes(kind: pyarrow.DataType) -> bool:
    """Return whether a column has bytes, or structures with ``bytes`` as in Hugging Face's sets."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(f.name == "bytes" and _is_bytes(f.type) for f in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)


class _Groups:
    """Encoded images of the last used row groups, which are read as a whole."""

    KEPT = 2

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: dict[tuple[str, str, int], Any] = {}

    def read(self, name: str, path: str, column: str, group: int, row: int) -> bytes:
        """Return the bytes of a row's image."""
        import pyarrow

        shown, key = printable(name), (path, column, group)
        try:
            with self._lock:
                if key not in self._groups:
                    file = _pyarrow_parquet().ParquetFile(path)
                    self._groups[key] = file.read_row_group(group, columns=[column]).column(0)
                    while len(self._groups) > self.KEPT:
                        del self._groups[next(iter(self._groups))]
                value = self._groups[key][row].as_py()
        except (pyarrow.ArrowException, OSError, IndexError) as error:
            raise ImageError(f"{shown}: cannot be read ({printable(error, 200)})") from error
        if isinstance(value, dict):
            value = value.get("bytes")
        if value is None:
            raise ImageError(f"{shown}: the row has no bytes of an image")
        return value


_GROUPS = _Groups()


def to_json(item: Item) -> list[Any]:
    """Return a short JSON value for :func:`from_json`."""
    return [item.name, item.file, item.tar, item.parquet, item.error]


def from_json(value: Sequence[Any]) -> Item:
    """Return the image that :func:`to_json` described."""
    name, file, tar, parquet, error = value
    return Item(
        name,
        file,
        None if tar is None else tuple(tar),
        None if parquet is None else tuple(parquet),
        error,
    )
