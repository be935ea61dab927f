"""Reading and writing files so that nothing is lost, and no name in a file leads outside.

Every file of results is written beside its name and renamed when it is complete. Imports no torch.
"""

from __future__ import annotations

import json
import ntpath
import os
import re
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn

from filelock import FileLock, Timeout

from odise_mm.errors import OdiseError, OutputError
from odise_mm.utils.display import printable

LOCK_NAME = ".odise_mm.lock"
OWNER_NAME = ".odise_mm.owner.json"
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # as of :func:`replacing`


@contextmanager
def replacing(path: str | os.PathLike[str], durable: bool = True) -> Iterator[Path]:
    """Give the name of a temporary file, which takes the place of ``path`` when it is complete.

    If anything fails, ``path`` stays as it was and the temporary file is removed. A kill may leave
    the temporary file, ``.NAME.XXXXXXXX.tmp``. Missing folders are made. A link stays a link: what
    it points to is replaced.

    Args:
        durable: whether to wait until the file survives a power cut, some hundredths of a second.
            Not for one of many files that are made again when they are found damaged.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # File systems bound a name's length in bytes, and the temporary name is the longer one.
    temporary = path.with_name(f".{path.name[:48]}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if durable:
            _flush(temporary)
        os.replace(temporary, path)
        if durable:
            _flush(path.parent)  # the rename, too
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # cannot be opened there
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_writer(
    path: str | os.PathLike[str], mode: str = "wb", durable: bool = True
) -> Iterator[IO[Any]]:
    """A file to write, which gets its name when the block ends without an error.

    Args:
        mode: "wb", or "w" for UTF-8 text; of text that UTF-8 cannot hold (parts of file names that
            are in no encoding) ``\\udcXX`` is written, which JSON reads back.
        durable: see :func:`replacing`.

    Raises:
        OSError: the file cannot be written.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode={mode!r}: 'wb' or 'w'")
    text = {} if mode == "wb" else dict(encoding="utf-8", errors="backslashreplace", newline="\n")
    with replacing(path, durable) as temporary, open(temporary, mode, **text) as file:
        yield file


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8; a file that was there stays whole until the new one is complete.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_writer(path, "w") as file:
        file.write(text)


def write_json(path: str | os.PathLike[str], content: Any, indent: int | None = None) -> None:
    """Write a JSON file as :func:`write_text` does.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_writer(path, "w") as file:
        json.dump(content, file, indent=indent, ensure_ascii=False)
        file.write("\n")


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove what programs that were killed while they wrote left in a folder of ours.

    Returns:
        The files that were removed.
    """
    found = [path for path in Path(folder).glob(".*.tmp") if _TEMPORARY.fullmatch(path.name)]
    for path in found:
        path.unlink(missing_ok=True)
    return found


def regular_file(path: str | os.PathLike[str], error: type[OdiseError], what: str) -> Path:
    """The path of a file that can be read to its end, ``~`` expanded.

    Opening a pipe or a device may never return, so these are refused before they are opened.

    Args:
        error: what is raised.
        what: for messages: "weights file".

    Raises:
        OdiseError: there is no such file, or it is a folder, a pipe, a device or a socket.
    """
    path = Path(os.path.expanduser(path))
    shown = printable(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{shown}: no such {what}; check the path") from None
    except (OSError, ValueError) as err:  # a name with a zero byte is a ValueError
        raise error(f"{shown}: cannot be read as a {what} ({err})") from err
    if stat.S_ISDIR(mode):
        raise error(f"{shown}: is a folder, not a {what}")
    if not stat.S_ISREG(mode):
        raise error(f"{shown}: is a pipe, a device or a socket, not a {what}")
    return path


def read_json(
    path: str | os.PathLike[str], error: type[OdiseError], what: str = "JSON file"
) -> Any:
    """Content of a JSON file.

    Args:
        error: what is raised.
        what: for messages: "annotation file".

    Raises:
        OdiseError: the file is missing, no regular file, not UTF-8, not JSON or cut short, nested
            too deeply, has a number of too many digits, NaN or Infinity, which JSON lacks, or an
            object that says the same key twice.
    """
    path = regular_file(path, error, what)
    shown = printable(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(
                file, parse_constant=_refuse_constant, object_pairs_hook=_without_doubles
            )
    except RecursionError:
        raise error(f"{shown}: is nested too deeply for a {what}") from None
    except UnicodeDecodeError as err:
        raise error(f"{shown}: not a {what}: it is not UTF-8 text ({err})") from err
    except ValueError as err:
        raise error(
            f"{shown}: not JSON, or cut short ({printable(err)}); get the {what} again"
        ) from err
    except OSError as err:
        raise error(f"{shown}: cannot be read ({err.strerror or err})") from err


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds the number {name}, which JSON does not have")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {double!r} twice")
    return content


def path_inside(
    root: str | os.PathLike[str],
    name: Any,
    error: type[OdiseError],
    what: str,
    *,
    for_writing: bool = False,
) -> Path:
    """A path that some file names, which must stay below ``root``.

    Links inside ``root`` are the user's own and are followed for reading: datasets are often
    folders of links. For writing, a link must not lead outside.

    Args:
        root: the folder that the name is relative to.
        name: as the file has it; ``/`` and ``\\`` both separate folders.
        error: what is raised.
        what: for messages, where the name stands: "ann.json: file_name of image 7".
        for_writing: whether something will be written there.

    Raises:
        OdiseError: not a name, or one that leads outside.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise error(f"{what}: {printable(repr(name))} is not the name of a file")
    outside = error(
        f"{what}: '{printable(name)}' leads outside its folder {printable(os.fspath(root))}; "
        "names in files must stay below it"
    )
    base = os.path.abspath(os.fspath(root))
    if os.path.isabs(name):
        if not _below(base, os.path.normpath(name)):
            raise outside
    elif ntpath.splitdrive(name)[0] or name[0] in "/\\":
        raise outside
    else:
        depth = 0
        for part in name.replace("\\", "/").split("/"):
            depth += 0 if part in ("", ".") else -1 if part == ".." else 1
            if depth < 0:
                raise outside
    path = Path(root, name)
    if for_writing and not _below(os.path.realpath(base), os.path.realpath(path)):
        raise outside
    return path


def _below(base: str, path: str) -> bool:
    try:
        return os.path.commonpath([base, path]) == base
    except ValueError:  # on different drives
        return False


class FolderLock:
    """A folder has one owner at a time: ``with FolderLock(folder, "results of a test"):``.

    The operating system ends the lock with its process, however that ends. Who holds it (process
    id, host) stands in a file beside the lock, for the message that the next one gets.

    Args:
        folder: made where missing.
        purpose: what the folder is held for, for messages.
    """

    def __init__(self, folder: str | os.PathLike[str], purpose: str) -> None:
        self.folder = Path(folder)
        self.purpose = purpose
        self._lock = FileLock(self.folder / LOCK_NAME, timeout=0, thread_local=False)

    def acquire(self) -> None:
        """Take the folder.

        Raises:
            OutputError: another program, or another part of this one, holds it.
            OSError: the folder cannot be made or written to.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise OutputError(
                f"{printable(self.folder)}: in use by {self._owner()}; wait until it ends, end "
                "it, or choose another folder"
            ) from None
        except NotImplementedError as err:
            raise OutputError(
                f"{printable(self.folder)}: this file system cannot lock files, so that two "
                "programs could write there at once; choose a folder on another one"
            ) from err
        owner = dict(pid=os.getpid(), host=socket.gethostname(), purpose=self.purpose)
        try:
            write_json(self.folder / OWNER_NAME, owner)
        except OSError:  # a full disk
            self._lock.release()
            raise

    def release(self) -> None:
        """Give the folder back; does nothing where it is not held."""
        if self._lock.is_locked:
            with suppress(OSError):  # a folder that is gone must not hide why its owner ends
                (self.folder / OWNER_NAME).unlink()
            # The lock's own file stays: removing it would let two others hold "it" at once.
            self._lock.release()

    def _owner(self) -> str:
        with suppress(OdiseError, KeyError, TypeError):
            owner = read_json(self.folder / OWNER_NAME, OutputError)
            return printable(
                f"process {owner['pid']} on {owner['host']} ({owner['purpose']})", limit=200
            )
        return "another program"

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
