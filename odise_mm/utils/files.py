"""Safe reading and writing of files.

Result files are written under a temporary name and renamed when they are complete. File names read
from other files must stay below a given folder. Does not import torch.
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
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # names of :func:`replacing`


@contextmanager
def replacing(path: str | os.PathLike[str], durable: bool = True) -> Iterator[Path]:
    """Yield the name of a temporary file, which replaces ``path`` at the end of the block.

    If anything fails, ``path`` is unchanged and the temporary file is removed. A killed process may
    leave the temporary file, ``.NAME.XXXXXXXX.tmp``. Missing folders are created. If ``path`` is a
    link, its target is replaced.

    Args:
        path: Path of the file to replace.
        durable: Whether to flush the file to disk, so that it survives a power failure. This takes
            some hundredths of a second. Turn it off for large numbers of files that are rewritten
            if they are damaged.

    Raises:
        OSError: If the file cannot be written.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # File systems limit the length of a name in bytes, and the temporary name is longer.
    temporary = path.with_name(f".{path.name[:48]}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if durable:
            flush_to_disk(temporary)
        os.replace(temporary, path)
        if durable:
            flush_to_disk(path.parent)  # flushes the rename
    finally:
        temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, would survive a power failure."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
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
    """Open a file for writing, which gets its name when the block ends without an error.

    Args:
        path: Path of the file.
        mode: "wb", or "w" for UTF-8 text. Characters that UTF-8 cannot encode (undecodable bytes of
            file names) are written as ``\\udcXX``, which JSON reads back.
        durable: See :func:`replacing`.

    Raises:
        OSError: If the file cannot be written.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode must be 'wb' or 'w', not {mode!r}")
    text = {} if mode == "wb" else dict(encoding="utf-8", errors="backslashreplace", newline="\n")
    with replacing(path, durable) as temporary, open(temporary, mode, **text) as file:
        yield file


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file; an existing file is replaced only when the new one is complete.

    Raises:
        OSError: If it cannot be written.
    """
    with atomic_writer(path, "w") as file:
        file.write(text)


def write_json(path: str | os.PathLike[str], content: Any, indent: int | None = None) -> None:
    """Write a JSON file like :func:`write_text`.

    Raises:
        OSError: If it cannot be written.
    """
    with atomic_writer(path, "w") as file:
        json.dump(content, file, indent=indent, ensure_ascii=False)
        file.write("\n")


def remove_leftovers(folder: str | os.PathLike[str], below: bool = False) -> list[Path]:
    """Remove temporary files that killed programs left in a folder.

    Args:
        folder: The folder.
        below: Whether to look in its subfolders, too.

    Returns:
        The removed files.
    """
    pattern = "**/.*.tmp" if below else ".*.tmp"
    found = [path for path in Path(folder).glob(pattern) if _TEMPORARY.fullmatch(path.name)]
    for path in found:
        path.unlink(missing_ok=True)
    return found


def regular_file(path: str | os.PathLike[str], error: type[OdiseError], what: str) -> Path:
    """Return the path of a regular file, with ``~`` expanded.

    Pipes and devices are rejected before they are opened, because opening them may block forever.

    Args:
        path: Path to check.
        error: Class of the raised error.
        what: Description for messages, e.g. "weights file".

    Raises:
        OdiseError: If the file does not exist, or is a folder, a pipe, a device or a socket.
    """
    path = Path(os.path.expanduser(path))
    shown = printable(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{shown}: no such {what}; check the path") from None
    except (OSError, ValueError) as err:  # ValueError: the name has a null byte
        raise error(f"{shown}: cannot be read as a {what} ({err})") from err
    if stat.S_ISDIR(mode):
        raise error(f"{shown}: is a folder, not a {what}")
    if not stat.S_ISREG(mode):
        raise error(f"{shown}: is a pipe, a device or a socket, not a {what}")
    return path


def read_json(
    path: str | os.PathLike[str], error: type[OdiseError], what: str = "JSON file"
) -> Any:
    """Read a JSON file.

    Args:
        path: Path of the file.
        error: Class of the raised error.
        what: Description for messages, e.g. "annotation file".

    Raises:
        OdiseError: If the file is missing, not a regular file, not UTF-8, not JSON, truncated or
            nested too deeply, or contains a number with too many digits, NaN or Infinity (which are
            not valid JSON), or an object with a duplicate key.
    """
    path = regular_file(path, error, what)
    shown = printable(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(
                file, parse_constant=_refuse_constant, object_pairs_hook=_without_doubles
            )
    except RecursionError:
        raise error(f"{shown}: not a {what}: it is nested too deeply") from None
    except UnicodeDecodeError as err:
        raise error(f"{shown}: not a {what}: it is not UTF-8 text ({err})") from err
    except ValueError as err:
        raise error(
            f"{shown}: not JSON, or truncated ({printable(err)}); get the {what} again"
        ) from err
    except OSError as err:
        raise error(f"{shown}: cannot be read ({err.strerror or err})") from err


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")


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
    """Return the path of a file named in another file, which must be below ``root``.

    For reading, links inside ``root`` are followed, as datasets are often folders of links. For
    writing, links must not lead outside.

    Args:
        root: Folder that the name is relative to.
        name: Name from the file; both ``/`` and ``\\`` separate folders.
        error: Class of the raised error.
        what: Source of the name for messages, e.g. "ann.json: file_name of image 7".
        for_writing: Whether the file will be written.

    Raises:
        OdiseError: If ``name`` is not a file name, or leads outside ``root``.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise error(f"{what}: {printable(repr(name))} is not a file name")
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
    """Lock that gives a folder one owner: ``with FolderLock(folder, "results of a test"):``.

    The operating system releases the lock when the process ends, even if it is killed. The owner
    (process id and host) is stored in a file next to the lock, for error messages.

    Args:
        folder: Folder to lock, created if missing.
        purpose: Purpose of the lock, for messages.
    """

    def __init__(self, folder: str | os.PathLike[str], purpose: str) -> None:
        self.folder = Path(folder)
        self.purpose = purpose
        self._lock = FileLock(self.folder / LOCK_NAME, timeout=0, thread_local=False)

    def acquire(self) -> None:
        """Acquire the lock.

        Raises:
            OutputError: If another program, or another part of this one, holds it.
            OSError: If the folder cannot be created or written to.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise OutputError(
                f"{printable(self.folder)}: in use by {self._owner()}; wait until it ends, stop "
                "it, or choose another folder"
            ) from None
        except NotImplementedError as err:
            raise OutputError(
                f"{printable(self.folder)}: this file system does not support locks, so two "
                "programs could write there at once; choose a folder on another file system"
            ) from err
        owner = dict(pid=os.getpid(), host=socket.gethostname(), purpose=self.purpose)
        try:
            write_json(self.folder / OWNER_NAME, owner)
        except OSError:  # e.g. a full disk
            self._lock.release()
            raise

    def release(self) -> None:
        """Release the lock; does nothing if it is not held."""
        if self._lock.is_locked:
            with suppress(OSError):  # a deleted folder must not hide the original error
                (self.folder / OWNER_NAME).unlink()
            # The lock file stays: if it were removed, two programs could hold the lock at once.
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
