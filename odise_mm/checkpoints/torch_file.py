"""A reader for torch's file formats that checks sizes and checksums and runs no code.

Both formats are supported: the zip archive with ``data.pkl`` and one entry per storage, even if it
was repacked by another program, and the legacy format, a sequence of pickles followed by the
numbers.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor

from odise_mm.checkpoints.safe_pickle import RefusedError, StoredNumbers, StoredTensor, Unpickler
from odise_mm.errors import CheckpointError
from odise_mm.utils.display import first_line, printable

_CHUNK = 1 << 20
_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of torch's legacy format
# Weights are hardly compressible. An archive that unpacks to more than this many times its size,
# and to more than a harmless amount of memory, is a zip bomb.
_MOST_RATIO, _HARMLESS = 100, 64 << 20
_HARMLESS_PICKLE = 4 << 20  # a byte of a pickle may become a hundred bytes of objects
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class TorchFile(AbstractContextManager):
    """An open file of ``torch.save``, whose tensors are read one by one.

    Args:
        path: the file.
        is_zip: True for the zip format, False for the legacy format.
        in_memory: copy tensors to memory when they are read, so that they do not depend on the
            file.

    Attributes:
        content: content of the file, with :class:`StoredTensor` in place of tensors.

    Raises:
        CheckpointError: the file is truncated, damaged or not a checkpoint, or its pickle tries to
            run code.
    """

    def __init__(self, path: Path, is_zip: bool, in_memory: bool = False) -> None:
        self.path = path
        self._storages: dict[str, torch.UntypedStorage] = {}
        self._stream = path.open("rb")
        try:
            kind = _Zip if is_zip else _Older
            self._container = kind(path, self._stream, in_memory)
            self.content = self._container.content
        except BaseException:
            self._stream.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.close()

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Read one tensor; tensors that share a storage in the file share memory.

        Raises:
            CheckpointError: the bytes of the tensor are damaged or incomplete.
        """
        key = stored.storage.key
        if key not in self._storages:
            self._storages[key] = self._container.read(stored.storage)
        empty = torch.empty(0, dtype=stored.dtype)
        try:
            return empty.set_(self._storages[key], stored.offset, stored.shape, stored.stride)
        except (RuntimeError, OverflowError, TypeError) as error:
            damaged(self.path, error)

    def whole(self) -> Any:
        """Return the content with all tensors read."""
        return self._filled(self.content, {})

    def _filled(self, value: Any, done: dict[int, Any]) -> Any:
        if isinstance(value, StoredTensor):
            if id(value) not in done:
                done[id(value)] = self.tensor(value)
            return done[id(value)]
        if isinstance(value, dict | list):
            if id(value) not in done:  # a container may contain itself
                done[id(value)] = value
                for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                    value[key] = self._filled(item, done)
            return value
        if type(value) is tuple:
            return tuple(self._filled(item, done) for item in value)
        return value


def damaged(path: Path, error: Exception | str) -> NoReturn:
    """Raise a ``CheckpointError`` for a damaged file.

    Args:
        path: the file.
        error: the cause.
    """
    reason = first_line(error) or type(error).__name__
    raise CheckpointError(
        f"{printable(path)} is truncated, damaged or not a checkpoint: download or copy it again "
        f"({reason})"
    ) from (error if isinstance(error, Exception) else None)


def _unpickle(path: Path, unpickler: Unpickler) -> Any:
    try:
        return unpickler.load()
    except RefusedError as error:
        raise CheckpointError(
            f"{printable(path)} was rejected: it tries to run code, or contains objects that "
            f"weights do not need ({printable(error.what, 200)}). No code from it was run. Get the "
            "weights as safetensors or from a trusted source"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can cause any exception
        damaged(path, error)


class _Bounded(io.BufferedIOBase):
    """A stream that rejects reads of more bytes than are left, before memory is allocated."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size = stream, size

    def read(self, count: int = -1) -> bytes:
        left = self._size - self._stream.tell()
        if count > left:
            raise EOFError(f"{count} bytes expected, but only {left} left")
        return self._stream.read(count)

    def readline(self, limit: int = -1) -> bytes:
        return self._stream.readline(limit)


class _Zip:
    """Reader of the zip format."""

    def __init__(self, path: Path, stream: BinaryIO, in_memory: bool) -> None:
        self.path, self._stream, self._in_memory = path, stream, in_memory
        self._size = os.fstat(stream.fileno()).st_size
        self._mapped: torch.UntypedStorage | None = None
        try:
            self._archive = zipfile.ZipFile(stream)
        except Exception as error:  # zipfile raises many types for damaged directories
            if "not a zip file" in str(error):
                raise CheckpointError(
                    f"{printable(path)} is truncated (the end of the archive is missing): download "
                    "or copy it again"
                ) from error
            damaged(path, error)
        entries = self._archive.infolist()
        self._entries = {entry.filename: entry for entry in entries}
        if len(self._entries) < len(entries):
            damaged(path, "the archive has two entries with the same name")
        self._prefix = self._find_prefix()
        total = sum(entry.file_size for entry in entries)
        if total > max(_HARMLESS, _MOST_RATIO * self._size):
            raise CheckpointError(
                f"{printable(path)} was rejected: the archive of {self._size:,} bytes unpacks to "
                f"{total:,} bytes, but weights cannot be compressed that much"
            )
        # torch has a setting to write no checksums; then all are zero.
        self._has_checksums = any(entry.CRC for entry in entries)
        packed = self._entries[self._prefix + "data.pkl"]
        if packed.file_size > max(_HARMLESS_PICKLE, _MOST_RATIO * self._size):
            raise CheckpointError(
                f"{printable(path)} was rejected: its data.pkl unpacks to {packed.file_size:,} "
                f"bytes, but the whole archive has only {self._size:,}"
            )
        pickled = bytes(self._read("data.pkl"))
        unpickler = Unpickler(_Bounded(io.BytesIO(pickled), len(pickled)))
        order = self._prefix + "byteorder"
        self._swap = order in self._entries and (
            bytes(self._read("byteorder")).decode("latin1") not in ("", sys.byteorder)
        )
        self.content = _unpickle(path, unpickler)

    def _find_prefix(self) -> str:
        """Return the folder of ``data.pkl`` in the archive, with a trailing slash."""
        folders = {
            name[: -len("data.pkl")]
            for name in self._entries
            if name == "data.pkl" or name.endswith("/data.pkl")
        }
        shown = printable(self.path)
        if any(name.rpartition("/")[2] == "constants.pkl" for name in self._entries):
            raise CheckpointError(
                f"{shown} is a TorchScript program, not plain weights, and was not run (OpenAI "
                "published CLIP in this format): use an open_clip tag or a safetensors file instead"
            )
        if not folders:
            raise CheckpointError(f"{shown} is a zip archive, but not a checkpoint")
        if len(folders) > 1:
            raise CheckpointError(
                f"{shown} contains {len(folders)} files of torch.save in one archive: unpack it "
                "and pack each separately"
            )
        return folders.pop()

    def _read(self, name: str) -> bytearray:
        """Return the bytes of an entry after checking its size and checksum."""
        entry = self._entries[self._prefix + name]
        if entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1:
            start = self._start(entry)
            self._check(entry, start)
            self._stream.seek(start)
            return _read_exactly(self.path, self._stream, entry.file_size)
        try:
            with self._archive.open(entry) as packed:
                data = _read_exactly(self.path, packed, entry.file_size)
                packed.read(1)  # compares the checksum
                return data
        except RuntimeError as error:  # zipfile: encrypted, or an unknown compression method
            raise CheckpointError(
                f"{printable(self.path)} is compressed in an unsupported way "
                f"({first_line(error)}): pack it again without a password"
            ) from error
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            damaged(self.path, error)

    def _start(self, entry: zipfile.ZipInfo) -> int:
        """Return the offset of the bytes of an uncompressed entry."""
        if entry.header_offset < 0:
            damaged(self.path, f"{entry.filename} starts before the beginning of the file")
        self._stream.seek(entry.header_offset)
        header = self._stream.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\3\4":
            damaged(self.path, f"no entry at the position of {entry.filename}")
        _, name, extra = _LOCAL_HEADER.unpack(header)
        start = entry.header_offset + _LOCAL_HEADER.size + name + extra
        if entry.compress_size != entry.file_size or start + entry.file_size > self._size:
            damaged(self.path, f"{entry.filename} has the wrong size")
        return start

    def _check(self, entry: zipfile.ZipInfo, start: int) -> None:
        if not self._has_checksums:
            return
        checksum, left, buffer = 0, entry.file_size, memoryview(bytearray(_CHUNK))
        self._stream.seek(start)
        while left:
            count = self._stream.readinto(buffer[: min(left, _CHUNK)])
            if not count:
                damaged(self.path, f"{entry.filename} ends early")
            checksum, left = zlib.crc32(buffer[:count], checksum), left - count
        if checksum != entry.CRC:
            damaged(self.path, f"the checksum of {entry.filename} is wrong: its bytes have changed")

    def read(self, numbers: StoredNumbers) -> torch.UntypedStorage:
        """Return a storage, memory-mapped if its bytes in the file can be used as they are."""
        name = f"data/{numbers.key}"
        entry = self._entries.get(self._prefix + name)
        if entry is None:
            damaged(self.path, f"{self._prefix + name} is missing")
        if entry.file_size != numbers.size:
            damaged(
                self.path,
                f"{entry.filename} has {entry.file_size} bytes instead of {numbers.size}",
            )
        if not numbers.size:
            return torch.UntypedStorage(0)
        stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
        as_it_is = stored and not self._swap and not self._in_memory
        if as_it_is and (start := self._start(entry)) % 16 == 0:
            self._check(entry, start)
            if self._mapped is None:
                self._mapped = torch.UntypedStorage.from_file(str(self.path), False, self._size)
            return self._mapped[start : start + numbers.size]
        storage = _as_storage(self._read(name))
        if self._swap:
            storage.byteswap(numbers.dtype)
        return storage


class _Older:
    """Reader of the format before torch 1.6: pickles, names of storages, and their numbers."""

    def __init__(self, path: Path, stream: BinaryIO, in_memory: bool) -> None:
        del in_memory  # always read to memory
        self.path, self._stream = path, stream
        self._size = os.fstat(stream.fileno()).st_size
        bounded = _Bounded(stream, self._size)
        magic = _unpickle(path, Unpickler(bounded))
        if magic != _MAGIC:
            damaged(
                path,
                "it does not start like a file of torch.save; save it again with torch.save, or as "
                "safetensors",
            )
        _unpickle(path, Unpickler(bounded))  # version of the format
        system = _unpickle(path, Unpickler(bounded))
        if not isinstance(system, Mapping) or system.get("little_endian") is not True:
            raise CheckpointError(
                f"{printable(path)} was written on a machine with another byte order: convert it "
                "to safetensors on such a machine"
            )
        unpickler = Unpickler(bounded)
        self.content = _unpickle(path, unpickler)
        keys = _unpickle(path, Unpickler(bounded))
        self._starts = self._find(keys, unpickler.storages)

    def _find(self, keys: Any, storages: Mapping[str, StoredNumbers]) -> dict[str, int]:
        """Return the offset of the numbers of each storage."""
        if not isinstance(keys, list) or {*storages} != {k for k in keys if isinstance(k, str)}:
            damaged(self.path, "its list of storages does not match its tensors")
        starts, place = {}, self._stream.tell()
        for key in keys:
            self._stream.seek(place)
            count = int.from_bytes(self._stream.read(8), "little", signed=True)
            size = storages[key].size
            if count != storages[key].count or place + 8 + size > self._size:
                damaged(self.path, f"storage {key} has the wrong size")
            starts[key] = place + 8
            place += 8 + size
        return starts

    def read(self, numbers: StoredNumbers) -> torch.UntypedStorage:
        """Return a storage, read to memory."""
        self._stream.seek(self._starts[numbers.key])
        return _as_storage(_read_exactly(self.path, self._stream, numbers.size))


def _read_exactly(path: Path, stream: Any, size: int) -> bytearray:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        count = stream.readinto(view[done : done + _CHUNK])
        if not count:
            damaged(path, "it ends early")
        done += count
    return data


def _as_storage(data: bytearray) -> torch.UntypedStorage:
    if not data:
        return torch.UntypedStorage(0)
    return torch.frombuffer(data, dtype=torch.uint8).untyped_storage()
