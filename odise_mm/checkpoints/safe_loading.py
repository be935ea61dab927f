"""Reading and writing weights, without ever running code from a file.

What files in torch's formats may build is told by :mod:`odise_mm.checkpoints.safe_pickle`; their
sizes and checksums are checked by :mod:`odise_mm.checkpoints.torch_file`.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from odise_mm.checkpoints.safe_pickle import StoredTensor, UnusableTensor
from odise_mm.checkpoints.torch_file import TorchFile
from odise_mm.checkpoints.unwrapping import Fits, innermost, unwrap
from odise_mm.errors import CheckpointError
from odise_mm.utils.display import printable
from odise_mm.utils.files import regular_file, replacing

__all__ = ["CheckpointError", "load_meta", "load_state_dict", "save_state_dict"]

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")


def load_state_dict(
    path: str | os.PathLike[str],
    keep: Callable[[str], bool] | None = None,
    fits: Callable[[str], bool] | None = None,
) -> dict[str, Tensor]:
    """Read the weights of a file on the CPU.

    The kind of file is told by its content: safetensors, or torch's zip or older format (``.pth``,
    ``.ckpt``, ``.bin``, ...). Weights under ``state_dict``, ``model``, ... are found there, see
    :mod:`odise_mm.checkpoints.unwrapping`; entries that are no tensors are left out. Tensors of
    safetensors and zip files stay on disk until they are used.

    Args:
        path: the file.
        keep: tells which of the weights are wanted, by the names that are returned; the others are
            not read (except in the older format).
        fits: whether a name is one that the model has. With it what wrappers add to names
            (``module.``, ``_orig_mod.``, ``model.``) is taken back, and of several sets the one
            that fits is read, the averaged one where several do. None: names are as in the file.

    Returns:
        tensors by key; empty if `keep` wants none.

    Raises:
        CheckpointError: if the file is missing, empty, cut off, damaged or no checkpoint, has no
            tensors, or is a pickle that wants to run code (which is not run).
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give the weights file inside it")
    try:
        status = path.stat()
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):  # opening it may never return
            raise CheckpointError(f"{path} is a pipe, a device or a socket, not a weights file")
        with path.open("rb") as stream:
            start = stream.read(16)
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no weights file {path}: check the path, or place the file there by hand "
            "(the head of a config says where its weights are from)"
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot read the weights file {path}: {error.strerror}") from error
    if size == 0:
        raise CheckpointError(f"the weights file {path} is empty: download or copy it again")

    # A safetensors file begins with the length of its JSON header, a zip archive with PK, a pickle
    # with the opcode for "protocol" and the protocol's number.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size:
        return _checked(path, _load_safetensors(path, keep, fits))
    if start[:2] == b"PK":
        return _checked(path, _load_torch(path, keep, fits, is_zip=True))
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return _checked(path, _load_torch(path, keep, fits, is_zip=False))
    hint = ""
    if start.lstrip()[:1] == b"<":
        hint = " (it looks like a web page: the download failed)"
    elif start.startswith(b"version https"):
        hint = " (it looks like a git-lfs pointer: run `git lfs pull`)"
    elif path.suffix == ".safetensors":
        return _load_safetensors(path, keep, fits)
    raise CheckpointError(
        f"{path} is not a checkpoint: neither safetensors nor a file of torch.save{hint}"
    )


def load_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The notes that a weights file holds beside its tensors; empty where there are none.

    Args:
        path: a file that :func:`load_state_dict` has read.

    Returns:
        ``meta`` of OpenMMLab's checkpoints and ours; of safetensors the header's texts.
    """
    path = Path(path).expanduser()
    with path.open("rb") as stream:
        start = stream.read(9)
    if start[8:9] == b"{":
        with safe_open(path, framework="pt", device="cpu") as file:
            return dict(file.metadata() or {})
    with TorchFile(path, is_zip=start[:2] == b"PK") as file:
        content = file.content
    meta = content.get("meta") if isinstance(content, Mapping) else None
    return dict(meta) if isinstance(meta, Mapping) else {}


def _choose_set(
    path: Path, content: Mapping[Any, Any], is_weight: Callable[[Any], bool], fits: Fits | None
) -> dict[str, Any]:
    """The weights of a file by the model's names; says so where it holds them more than once."""
    chosen, others = unwrap(content, is_weight, fits)
    if chosen is None:
        shown = printable(", ".join(map(repr, list(innermost(content))[:5])), 300) or "nothing"
        raise CheckpointError(f"{path} has no tensors inside, only: {shown}")
    place, level = chosen.place or "the file itself", logging.INFO
    if chosen.averaged and any(other.score for other in others):
        text = f"{path} holds averaged weights beside raw ones: the averaged are read ({place})"
    elif not chosen.averaged and any(other.averaged and other.score for other in others):
        text = f"{path}: raw weights are read ({place}), as the averaged ones do not fit as well"
        level = logging.WARNING
    else:
        return chosen.values
    print_log(text, logger="current", level=level)
    return chosen.values


def _load_safetensors(
    path: Path, keep: Callable[[str], bool] | None, fits: Fits | None
) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            keys = list(file.keys())
            if not keys:
                raise CheckpointError(f"{path} has no tensors inside")
            names = _choose_set(path, {key: key for key in keys}, lambda _: True, fits)
            return {k: file.get_tensor(v) for k, v in names.items() if keep is None or keep(k)}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is cut off or no safetensors file: download or copy it again ({error})"
        ) from error


def _load_torch(
    path: Path, keep: Callable[[str], bool] | None, fits: Fits | None, is_zip: bool
) -> dict[str, Tensor]:
    with TorchFile(path, is_zip) as file:
        if not isinstance(file.content, Mapping):
            kind = type(file.content).__name__.replace("StoredTensor", "Tensor")
            raise CheckpointError(
                f"{printable(path)} is not a checkpoint: it holds a {kind}, not weights by name"
            )
        tensors = _choose_set(path, file.content, _is_tensor, fits)
        tensors = {k: v for k, v in tensors.items() if keep is None or keep(k)}
        for key, value in tensors.items():
            if isinstance(value, UnusableTensor):
                raise CheckpointError(
                    f"{printable(path)}: {printable(key)} is a tensor {value.kind}, which is not "
                    "read as weights: save its plain numbers (to_dense(), dequantize(), ...)"
                )
        return {key: file.tensor(value) for key, value in tensors.items()}


def _checked(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Warn of numbers that are none: a damaged file, or weights of a training that went wrong."""
    odd = [key for key, value in state.items() if _has_odd_numbers(value)]
    if odd:
        print_log(
            f"{printable(path)}: {len(odd)} of its tensors hold NaN or infinite numbers (first: "
            f"{printable(odd[0])}): the file is damaged, or its training had failed",
            logger="current",
            level=logging.WARNING,
        )
    return state


def _has_odd_numbers(value: Tensor) -> bool:
    # A view may stand for any count of numbers; those of the file are what is worth a look.
    if not value.is_floating_point() or value.nbytes > value.untyped_storage().nbytes():
        return False
    wide = value.float() if value.dtype.itemsize < 4 else value
    # One sum is quicker than a look at each number; it may overflow.
    return not bool(wide.sum().isfinite()) and not bool(wide.isfinite().all())


def _is_tensor(value: Any) -> bool:
    return isinstance(value, StoredTensor | UnusableTensor)


def load_training_state(path: str | os.PathLike[str]) -> Any:
    """Everything in a file of ``torch.save``, on the CPU, by the same policy; no code in it is run.

    Raises:
        CheckpointError: see :func:`load_state_dict`.
    """
    path = regular_file(path, CheckpointError, "checkpoint")
    with path.open("rb") as stream:
        is_zip = stream.read(2) == b"PK"
    with TorchFile(path, is_zip, in_memory=True) as file:
        return file.whole()


def differences(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], unused: Set[str] = frozenset()
) -> str:
    """How a file's tensors differ from those that a module wants; empty where they fit.

    Args:
        state: what the file holds.
        wanted: the module's ``state_dict()``; may be on the meta device.
        unused: keys that the file may hold beside these.
    """
    misfits = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    # An integer or complex number in place of a float is another thing, however it is rounded.
    kinds = [
        f"{key} is {_name(state[key])}, not {_name(wanted[key])}"
        for key in wanted
        if key in state and _kind(state[key]) != _kind(wanted[key])
    ]
    found = {
        "missing": [key for key in wanted if key not in state],
        "unknown": [key for key in state if key not in wanted and key not in unused],
        "of another shape": misfits,
        "of another type of numbers": kinds,
    }
    return ", ".join(
        f"{len(k)} {kind} (first: {printable(k[0], 200)})" for kind, k in found.items() if k
    )


def _kind(value: Tensor) -> str:
    return "complex" if value.is_complex() else "float" if value.is_floating_point() else "integer"


def _name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def save_state_dict(
    path: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    meta: Mapping[str, str] | None = None,
) -> None:
    """Write weights so that a failure (a full disk, a kill) leaves a previous file as it was.

    They go to a temporary file beside it, which takes its place when it is complete.

    Args:
        path: ``.safetensors``, or ``.pth``, ``.pt``, ``.ckpt``, ``.bin`` (torch's format, with the
            weights under ``state_dict`` as OpenMMLab has them). Missing folders are made.
        state: tensors by key, on any device; they are written from the CPU.
        meta: notes to keep with them (header of safetensors; ``meta`` otherwise).

    Raises:
        CheckpointError: if the suffix is another one, or writing fails.
    """
    # A link stays a link: what it points to is replaced.
    path = Path(path).expanduser().resolve()
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        known = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise CheckpointError(f"cannot tell how to write {path}: the suffix must be of {known}")
    try:
        # Own memory for each: safetensors has no shared storage, and torch.save would write a
        # whole storage for a slice of it.
        tensors = {
            k: v.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
            for k, v in state.items()
        }
        with replacing(path) as temporary:
            if path.suffix == ".safetensors":
                save_file(tensors, temporary, metadata=dict(meta) if meta else None)
            else:
                torch.save({"state_dict": tensors, "meta": dict(meta or {})}, temporary)
    except (OSError, RuntimeError, SafetensorError) as error:
        before = "the file that was there is unchanged" if path.exists() else "nothing was left"
        raise CheckpointError(
            f"could not write {path} ({error}); {before}: is the disk full or write-protected?"
        ) from error
