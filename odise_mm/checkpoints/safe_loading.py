"""Reading and writing of weights files without running code from them.

:mod:`odise_mm.checkpoints.safe_pickle` defines which objects files in torch's formats may contain;
:mod:`odise_mm.checkpoints.torch_file` checks their sizes and checksums.
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
from odise_mm.utils.pages import release_pages

__all__ = ["CheckpointError", "load_meta", "load_state_dict", "save_state_dict"]

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")


def load_state_dict(
    path: str | os.PathLike[str],
    keep: Callable[[str], bool] | None = None,
    fits: Callable[[str], bool] | None = None,
) -> dict[str, Tensor]:
    """Read the weights of a file to the CPU.

    The format is detected from the content: safetensors, or torch's zip or legacy format (``.pth``,
    ``.ckpt``, ``.bin``, ...). Weights below ``state_dict``, ``model``, ... are found, see
    :mod:`odise_mm.checkpoints.unwrapping`; entries that are not tensors are skipped. Tensors of
    safetensors and zip files stay on disk until they are used.

    Args:
        path: the file.
        keep: function that returns whether to read the weight with a (returned) name. Other weights
            are not read, except in the legacy format.
        fits: function that returns whether the model has a parameter with this name. If given,
            prefixes of wrappers (``module.``, ``_orig_mod.``, ``model.``) are removed from names.
            If the file has several sets of weights, the one that fits the model is read, or the
            averaged one if several fit. None: names are returned as they are in the file.

    Returns:
        Tensors by name; empty if ``keep`` accepts none.

    Raises:
        CheckpointError: the file is missing, empty, truncated, damaged or not a checkpoint, has no
            tensors, or is a pickle that tries to run code (which is not run).
    """
    path = Path(path).expanduser()
    kind = weights_format(path)
    if kind == "safetensors":
        return _checked(path, _load_safetensors(path, keep, fits))
    return _checked(path, _load_torch(path, keep, fits, is_zip=kind == "zip"))


def weights_format(path: str | os.PathLike[str]) -> str:
    """Detect the format of a weights file from its first bytes, without reading the weights.

    Returns:
        "safetensors", "zip" or "pickle", the latter two written by ``torch.save``.

    Raises:
        CheckpointError: the file is missing, empty or in none of the formats.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: pass the weights file inside it")
    try:
        status = path.stat()
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):  # opening it might block forever
            raise CheckpointError(f"{path} is a pipe, a device or a socket, not a weights file")
        with path.open("rb") as stream:
            start = stream.read(16)
    except FileNotFoundError:
        raise CheckpointError(
            f"no weights file {path}: check the path, or download the file and place it there "
            "(the comment at the top of a config names the source of its weights)"
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot read the weights file {path}: {error.strerror}") from error
    if size == 0:
        raise CheckpointError(f"the weights file {path} is empty: download or copy it again")

    # safetensors starts with the length of its JSON header, a zip archive with "PK", a pickle with
    # the opcode PROTO and the protocol number.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size:
        return "safetensors"
    if start[:2] == b"PK":
        return "zip"
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return "pickle"
    hint = ""
    if start.lstrip()[:1] == b"<":
        hint = " (it looks like a web page: the download failed)"
    elif start.startswith(b"version https"):
        hint = " (it looks like a git-lfs pointer: run `git lfs pull`)"
    elif path.suffix == ".safetensors":
        return "safetensors"  # its reader says what is wrong with the header
    raise CheckpointError(
        f"{path} is not a checkpoint: neither safetensors nor written by torch.save{hint}"
    )


def load_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the metadata of a weights file; empty if it has none.

    Args:
        path: a file that :func:`load_state_dict` can read.

    Returns:
        ``meta`` of OpenMMLab's and our checkpoints, or the metadata in the header of safetensors.
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
    """Return the weights that fit the model; log the choice if the file has several sets."""
    chosen, others = unwrap(content, is_weight, fits)
    if chosen is None:
        shown = printable(", ".join(map(repr, list(innermost(content))[:5])), 300) or "nothing"
        raise CheckpointError(f"{path} contains no tensors, only: {shown}")
    place, level = chosen.place or "the file itself", logging.INFO
    if chosen.averaged and any(other.score for other in others):
        text = f"{path} contains averaged and raw weights: using the averaged weights ({place})"
    elif not chosen.averaged and any(other.averaged and other.score for other in others):
        text = (
            f"{path}: using the raw weights ({place}), because the averaged weights do not match "
            "the model as well"
        )
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
                raise CheckpointError(f"{path} contains no tensors")
            names = _choose_set(path, {key: key for key in keys}, lambda _: True, fits)
            return {k: file.get_tensor(v) for k, v in names.items() if keep is None or keep(k)}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file: download or copy it again ({error})"
        ) from error


def _load_torch(
    path: Path, keep: Callable[[str], bool] | None, fits: Fits | None, is_zip: bool
) -> dict[str, Tensor]:
    with TorchFile(path, is_zip) as file:
        if not isinstance(file.content, Mapping):
            kind = type(file.content).__name__.replace("StoredTensor", "Tensor")
            raise CheckpointError(
                f"{printable(path)} is not a checkpoint: it contains a {kind}, not weights by name"
            )
        tensors = _choose_set(path, file.content, _is_tensor, fits)
        tensors = {k: v for k, v in tensors.items() if keep is None or keep(k)}
        for key, value in tensors.items():
            if isinstance(value, UnusableTensor):
                raise CheckpointError(
                    f"{printable(path)}: {printable(key)} is a tensor {value.kind}, which is not "
                    "supported: save it as a plain tensor (to_dense(), dequantize(), ...)"
                )
        return {key: file.tensor(value) for key, value in tensors.items()}


def _checked(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Warn of tensors with NaN or infinite numbers; return ``state``."""
    invalid = []
    for key, value in state.items():
        if _has_nonfinite_numbers(value):
            invalid.append(key)
        release_pages(value)  # it may never be used, or be converted
    if invalid:
        print_log(
            f"{printable(path)}: {len(invalid)} of its tensors contain NaN or infinite numbers "
            f"(first: {printable(invalid[0])}): the file is damaged, or its training run diverged",
            logger="current",
            level=logging.WARNING,
        )
    return state


def _has_nonfinite_numbers(value: Tensor) -> bool:
    # An expanded view may have far more elements than the file; such views are skipped.
    if not value.is_floating_point() or value.nbytes > value.untyped_storage().nbytes():
        return False
    wide = value.float() if value.dtype.itemsize < 4 else value
    # One sum is faster than checking each number. It may overflow, so check again if it does.
    return not bool(wide.sum().isfinite()) and not bool(wide.isfinite().all())


def _is_tensor(value: Any) -> bool:
    return isinstance(value, StoredTensor | UnusableTensor)


def load_training_state(path: str | os.PathLike[str]) -> Any:
    """Read the whole content of a file of ``torch.save`` to the CPU, without running code from it.

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
    """Describe how the tensors of a file differ from those of a module; empty if they match.

    Args:
        state: tensors of the file.
        wanted: the module's ``state_dict()``; may be on the meta device.
        unused: additional keys that the file may have.
    """
    misfits = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    # Floats of any precision are interchangeable; floats, integers and complex numbers are not.
    kinds = [
        f"{key} is {_name(state[key])}, not {_name(wanted[key])}"
        for key in wanted
        if key in state and _kind(state[key]) != _kind(wanted[key])
    ]
    found = {
        "missing": [key for key in wanted if key not in state],
        "unknown": [key for key in state if key not in wanted and key not in unused],
        "of another shape": misfits,
        "of another dtype": kinds,
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
    """Write weights to a file; a failure (full disk, kill) leaves an existing file unchanged.

    The weights are written to a temporary file in the same folder, which then replaces the target.

    Args:
        path: ``.safetensors``, or ``.pth``, ``.pt``, ``.ckpt``, ``.bin`` (torch's format, with the
            weights under ``state_dict`` as in OpenMMLab). Missing folders are created.
        state: tensors by name, on any device.
        meta: metadata to store with the weights (header of safetensors; ``meta`` otherwise).

    Raises:
        CheckpointError: the suffix is unknown, or writing failed.
    """
    # Resolve links, so that the target of a link is replaced and the link is kept.
    path = Path(path).expanduser().resolve()
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        known = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise CheckpointError(f"cannot write {path}: the suffix must be one of {known}")
    try:
        # Copy each tensor: safetensors does not support shared storages, and torch.save would
        # write the whole storage of a slice.
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
        outcome = "the existing file is unchanged" if path.exists() else "no file was created"
        raise CheckpointError(
            f"could not write {path} ({error}); {outcome}: is the disk full or write-protected?"
        ) from error
