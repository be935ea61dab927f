"""Reading and writing weights, without ever running code from a file.

Files in torch's formats are read with ``weights_only=True``. Of what else such files carry
(training state, callbacks), a few harmless classes are replaced by empty stand-ins; a file that
asks for any other class or function is refused, and nothing of it is run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickletools
import re
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.logging import print_log
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from odise_mm.errors import CheckpointError
from odise_mm.utils.display import printable
from odise_mm.utils.files import replacing
from odise_mm.utils.unwrapping import Fits, innermost, unwrap

__all__ = ["CheckpointError", "load_meta", "load_state_dict", "save_state_dict"]

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")


class _Inert:
    """Takes any arguments and any state, and does nothing with them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_in(module: str, name: str) -> type[_Inert]:
    return type(name, (_Inert,), {"__module__": module, "__qualname__": name})


# What honest checkpoints carry beside weights. The real things are never imported or called: the
# reader sees these empty classes in their place.
_STAND_INS = [
    # Original Stable Diffusion files.
    _stand_in("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
    # The loss history in OpenMMLab's training checkpoints, which names its own methods.
    _stand_in("mmengine.logging.history_buffer", "HistoryBuffer"),
    _stand_in("builtins", "getattr"),
    # The settings of a training, in timm's and many others' files.
    _stand_in("argparse", "Namespace"),
    # Numbers and arrays of numpy, before and after its version 2.
    _stand_in("numpy", "dtype"),
    _stand_in("numpy", "ndarray"),
    *(
        _stand_in(module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("_reconstruct", "scalar")
    ),
]


_READING = threading.Lock()


@contextlib.contextmanager
def _only_stand_ins() -> Iterator[None]:
    # Other libraries register the real classes of some of these for the whole process (accelerate
    # does for numpy). Real ones and stand-ins don't mix, so those wait outside meanwhile.
    with _READING:
        others = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(_STAND_INS)
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(others)


def load_state_dict(
    path: str | os.PathLike[str],
    keep: Callable[[str], bool] | None = None,
    fits: Callable[[str], bool] | None = None,
) -> dict[str, Tensor]:
    """Read the weights of a file on the CPU.

    The kind of file is told by its content: safetensors, or torch's zip or older format (``.pth``,
    ``.ckpt``, ``.bin``, ...). Weights under ``state_dict``, ``model``, ... are found there, see
    :mod:`odise_mm.utils.unwrapping`; entries that are no tensors are left out. Tensors of
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
        size = path.stat().st_size
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
        return _load_safetensors(path, keep, fits)
    if start[:2] == b"PK":
        return _load_torch(path, keep, fits, is_zip=True)
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return _load_torch(path, keep, fits, is_zip=False)
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
    content = _read_torch(path, is_zip=start[:2] == b"PK")
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
    if is_zip and not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} is cut off (the end of the archive is missing): download or copy it again"
        )
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
        if "constants.pkl" in names:
            raise CheckpointError(
                f"{path} is a TorchScript program, not plain weights, and was not run: OpenAI "
                "gave out CLIP like this; use an open_clip tag or a safetensors file instead"
            )
        if "data.pkl" not in names:
            raise CheckpointError(f"{path} is not a checkpoint but some other zip archive")
    content = _read_torch(path, is_zip)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} is not a checkpoint: it holds a {type(content).__name__}, not weights by name"
        )
    tensors = _choose_set(path, content, lambda value: isinstance(value, Tensor), fits)
    return {k: v.detach() for k, v in tensors.items() if keep is None or keep(k)}


def _read_torch(path: Path, is_zip: bool) -> Any:
    """Content of a file of torch's formats."""
    try:
        with _only_stand_ins(), path.open("rb") as stream:
            if is_zip and path.suffix != ".safetensors":
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            # As a stream: torch goes by the suffix where it is given a path.
            return torch.load(stream, map_location="cpu", weights_only=True)
    # Whatever a damaged or hostile pickle can make the reader stumble over.
    except Exception as error:
        _explain(path, is_zip, error)


def _explain(path: Path, is_zip: bool, error: Exception) -> NoReturn:
    if isinstance(error, MemoryError):
        raise error
    text = str(error)
    named = re.findall(r"GLOBAL (\S+)", text)
    foreign = _foreign_globals(path, is_zip)
    if named or foreign or "unrecognized function" in text:
        # The reader names only the first, and drops "builtins." from it.
        culprits = ", ".join(foreign or named) or "what it builds itself"
        raise CheckpointError(
            f"{path} was refused: it wants to run code ({culprits}), which weights have no need "
            "of. Nothing in it was run. Get the weights as safetensors or from a trusted source"
        ) from error
    if "Unsupported operand" in text:
        raise CheckpointError(
            f"{path} is not a checkpoint, or was pickled with a protocol that cannot be read "
            "safely: save it again with plain torch.save, or as safetensors"
        ) from error
    reason = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    raise CheckpointError(
        f"{path} is cut off, damaged or not a checkpoint: download or copy it again "
        f"({reason[:200]})"
    ) from error


def _foreign_globals(path: Path, is_zip: bool) -> list[str]:
    """Classes and functions that a pickle names and weights have no need of, without running it."""
    known = {f"{c.__module__}.{c.__qualname__}" for c in _STAND_INS}
    known |= {"collections.OrderedDict", "_codecs.encode", "__builtin__.getattr"}
    found = []
    for name in _globals(path, is_zip):
        if name not in known and not name.startswith("torch.") and name not in found:
            found.append(name)
    return found


def _globals(path: Path, is_zip: bool) -> Iterator[str]:
    # A damaged pickle ends the listing: what was found until there is what there is to say.
    with contextlib.suppress(ValueError, IndexError, OSError, EOFError, zipfile.BadZipFile):
        with contextlib.ExitStack() as stack:
            if is_zip:
                archive = stack.enter_context(zipfile.ZipFile(path))
                name = next(n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl")
                stream = stack.enter_context(archive.open(name))
            else:
                stream = stack.enter_context(path.open("rb"))
            # The older format is a magic number, its version, the system and then the content.
            for _ in range(1 if is_zip else 4):
                strings: list[str] = []
                for opcode, value, _ in pickletools.genops(stream):
                    if opcode.name == "GLOBAL":
                        yield value.replace(" ", ".")
                    elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                        yield ".".join(strings[-2:])
                    elif isinstance(value, str):
                        strings.append(value)


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
    found = {
        "missing": [key for key in wanted if key not in state],
        "unknown": [key for key in state if key not in wanted and key not in unused],
        "of another shape": misfits,
    }
    return ", ".join(f"{len(k)} {kind} (first: {k[0]})" for kind, k in found.items() if k)


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
