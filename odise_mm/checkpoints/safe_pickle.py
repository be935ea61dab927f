"""The one policy for reading pickles in torch's files: what they may build, and nothing else.

A pickle is a program for a small machine. Here the machine knows the steps that containers,
numbers, text and tensors need; calls go to the functions of this module only. Of everything else
that honest files carry beside weights (callbacks, settings), a few harmless classes are replaced by
empty stand-ins; a file that names any other class or function is refused, and nothing of it is run.

Arrays of numpy are built from shape, type of numbers and bytes alone; the curves of mmengine's
trainings (``HistoryBuffer``) from their arrays. ``torch.load(..., weights_only=True)``, by which
mmengine resumes, gets the same builders for these, once, when :mod:`odise_mm.registry` is imported.
The reader of this package asks no list that other libraries change.
"""

from __future__ import annotations

import codecs
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

_STATISTICS = ("min", "max", "current", "mean")


class RefusedError(pickle.UnpicklingError):
    """A pickle wants something that weights have no need of.

    Attributes:
        what: the class, function or step that it wants.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"refused: {what}")
        self.what = what


# --------------------------------------------------------------------------------------- tensors


@dataclass(frozen=True)
class StoredNumbers:
    """A storage in the file: ``count`` numbers of one type. Nothing is read yet."""

    key: str
    dtype: torch.dtype
    count: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in the file, as a view of a storage. Nothing is read yet."""

    storage: StoredNumbers
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class UnusableTensor:
    """A tensor of a kind that holds no plain numbers; ``kind`` says which."""

    kind: str


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, dtype: torch.dtype | None = None
) -> StoredTensor | UnusableTensor:
    if not isinstance(storage, StoredNumbers):
        raise pickle.UnpicklingError("a tensor without a storage")
    dtype = storage.dtype if dtype is None else dtype
    if not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a tensor of no type of numbers")
    shape, stride = tuple(shape), tuple(stride)
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor whose shape is no shape")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if 0 not in shape and (last + 1) * dtype.itemsize > storage.size:
        raise pickle.UnpicklingError(
            f"a tensor of shape {shape} does not lie inside its {storage.size} bytes"
        )
    return StoredTensor(storage, dtype, offset, shape, stride)


def _tensor_of_type(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Any:
    _, _, dtype, *_ = rest
    return _tensor(storage, offset, shape, stride, dtype)


def _tensor_of_subclass(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    known = isinstance(function, Builder) and function.name in _PLAIN_TENSORS
    if known and isinstance(kind, Builder) and kind.name in _TENSOR_CLASSES:
        return function.call(*arguments)
    return UnusableTensor(f"of the class {getattr(kind, 'name', kind)}")


_PLAIN_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": lambda s, o, z, t, *_: _tensor(s, o, z, t),
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
}
_TENSOR_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
_UNUSABLE_TENSORS = {
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_qtensor": "quantized",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch.nested._internal.nested_tensor._rebuild_njt": "nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "without numbers (on the meta device)",
    "torch._utils._rebuild_wrapper_subclass": "of a class of its own",
    "torch._utils._rebuild_device_tensor_from_numpy": "of another kind of device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "of another kind of device",
}


# ----------------------------------------------------------------------------------------- numpy


class NumberType:
    """Stands for numpy's dtype while a file is read: booleans, integers and floats of any size."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biufc](1|2|4|8|16|32)", code):
            raise RefusedError(f"numpy's type {str(code)[:40]!r}, which is no type of numbers")
        self.code = code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        order, *rest = state[1:] if isinstance(state, tuple) else ("",)
        if order not in ("<", ">", "|", "=") or rest[:3] != [None] * 3:
            raise RefusedError("a type of numpy's with parts")
        self.order = order

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class Array(np.ndarray):
    """Stands for numpy's array while a file is read; saved again it is numpy's.

    Numbers of another byte order become those of this machine.
    """

    def __new__(cls, *_: Any) -> Array:
        raise RefusedError("an array that is not built from its numbers")

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        flat = _numbers(kind, data)
        if not isinstance(shape, tuple) or any(type(n) is not int or n < 0 for n in shape):
            raise RefusedError("an array whose shape is no shape")
        if flat.size != math.prod(shape):
            raise RefusedError(f"an array of {flat.size} numbers in place of {math.prod(shape)}")
        values = flat.reshape(shape, order="F" if fortran else "C")
        super().__setstate__(values.__reduce__()[2])

    def __reduce__(self) -> tuple:
        return np.array(self).__reduce__()


def _numbers(kind: Any, data: Any) -> np.ndarray:
    if not isinstance(kind, NumberType) or not isinstance(data, bytes):
        raise RefusedError("an array of numpy's that is not of plain numbers")
    return np.frombuffer(data, kind.dtype)


def _empty_array(cls: Any, *_: Any) -> Array:
    if cls is not Array and getattr(cls, "new", None) is not Array:
        raise RefusedError("an array of another class than numpy's")
    return np.empty(0).view(Array)


def _scalar(kind: Any, data: Any) -> np.generic:
    (value,) = _numbers(kind, data)
    return value


# --------------------------------------------------------------------------------------- mmengine


class History(HistoryBuffer):
    """Stands for mmengine's HistoryBuffer while a file is read, and is one afterwards."""

    def __setstate__(self, state: Any) -> None:
        log, count = (np.asarray(state[key]) for key in ("_log_history", "_count_history"))
        limit = state.get("max_length", state.get("_max_length", 1_000_000))
        if type(limit) is not int or log.shape != count.shape or log.ndim != 1:
            raise RefusedError("a history that is no two rows of numbers")
        HistoryBuffer.__init__(self, log, count, limit)
        self.__class__ = HistoryBuffer


def _statistic(owner: Any, name: Any) -> Any:
    """Stand in for ``getattr``: a HistoryBuffer pickles its four statistics as its attributes."""
    if (owner is not History and getattr(owner, "new", None) is not History) or (
        name not in _STATISTICS
    ):
        raise RefusedError(f"builtins.getattr of {str(name)[:40]!r}")
    return name


# ------------------------------------------------------------------------------------- the policy


class Inert:
    """Takes any arguments, state and items, and does nothing with them."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Builder:
    """What a pickle gets for the name of a class or function.

    Attributes:
        name: in the file.
        call: what a call of it does; None: it cannot be called.
        new: the class of which it makes objects; None: of none.
    """

    name: str
    call: Callable[..., Any] | None = None
    new: type | None = None


_INERT = (
    # Original Stable Diffusion files, and other trainings with Lightning.
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    # Settings of a training, in timm's and many others' files.
    "argparse.Namespace",
    *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in
      ("Posix", "Windows", "PurePosix", "PureWindows")),
    # What tensors of other kinds name.
    "torch.serialization._get_layout",
    "torch.nested._internal.nested_tensor.NestedTensor",
    "torch._dynamo.decorators._DimRange",
    *(f"torch.per_{what}_affine" for what in ("tensor", "channel")),
    "torch.per_channel_affine_float_qparams",
    "torch.per_channel_symmetric",
    "torch.per_tensor_symmetric",
)  # fmt: skip


def _numpy_names() -> dict[str, tuple[Callable[..., Any], type | None]]:
    """Spellings of numpy 1 and 2 and Python 2 and 3, with what is called or made."""
    names: dict[str, tuple[Callable[..., Any], type | None]] = {
        "numpy.dtype": (NumberType, NumberType),
        "numpy.ndarray": (_refuse_arrays, Array),
        "mmengine.logging.history_buffer.HistoryBuffer": (_refuse_arrays, History),
    }
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names[f"{core}._reconstruct"] = (_empty_array, None)
        names[f"{core}.scalar"] = (_scalar, None)
    for module in ("builtins", "__builtin__"):
        names[f"{module}.getattr"] = (_statistic, None)
        names[f"{module}.bytes"] = (_no_bytes, None)
    return names


def _no_bytes(*arguments: Any) -> bytes:
    """No bytes at all, which an old protocol spells like this; others come from text."""
    if arguments:
        raise RefusedError("bytes made by a call")
    return b""


def _refuse_arrays(*_: Any) -> Any:
    raise RefusedError("an array or a history that is not built from its numbers")


@lru_cache(maxsize=1)
def _policy() -> dict[str, Builder]:
    calls: dict[str, Callable[..., Any]] = {
        **_PLAIN_TENSORS,
        "torch._tensor._rebuild_from_type_v2": _tensor_of_subclass,
        "torch.Size": tuple,
        "torch.device": torch.device,
        "collections.OrderedDict": OrderedDict,
        "collections.defaultdict": lambda *_: {},
        "collections.Counter": dict,
        "_codecs.encode": _encode,
    }
    for name, kind in _UNUSABLE_TENSORS.items():
        calls[name] = lambda *_, kind=kind: UnusableTensor(kind)
    for module in ("builtins", "__builtin__"):
        calls |= {f"{module}.set": set, f"{module}.frozenset": frozenset}
        calls |= {f"{module}.complex": complex, f"{module}.bytearray": _encode}
    policy = {name: Builder(name, call) for name, call in calls.items()}
    policy |= {name: Builder(name) for name in _TENSOR_CLASSES}
    policy |= {name: Builder(name, Inert, Inert) for name in _INERT}
    policy |= {name: Builder(name, *both) for name, both in _numpy_names().items()}
    return policy


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedError("_codecs.encode of something else than bytes")
    return codecs.encode(text, "latin1")


_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    # read as the bytes that they are; no tensor of these is used
    "QInt8": torch.int8,
    "QUInt8": torch.uint8,
    "QInt32": torch.int32,
    "QUInt4x2": torch.uint8,
    "QUInt2x4": torch.uint8,
    "Untyped": torch.uint8,
}


def _torch_value(name: str) -> Any:
    """The type of numbers that a name of torch's stands for; None if it is none."""
    module, _, last = name.rpartition(".")
    if module in ("torch", "torch.cuda", "torch.storage") and last.endswith("Storage"):
        return _STORAGES.get(last.removesuffix("Storage"))
    value = getattr(torch, last, None) if module == "torch" else None
    return value if isinstance(value, torch.dtype) else None


# ------------------------------------------------------------------------------------- the reader


class Unpickler(pickle._Unpickler):
    """Reads a pickle by the policy above.

    Python's own machine in Python, without the steps that nothing here needs: those that look up
    registers of the process, and objects with arguments by name.

    Args:
        file: with ``read`` and ``readline``, which never give more than there is.

    Attributes:
        storages: those that the pickle refers to, by key.
    """

    dispatch = {
        code: function
        for code, function in pickle._Unpickler.dispatch.items()
        if function.__name__.removeprefix("load_")
        not in "persid inst obj newobj_ex ext1 ext2 ext4 next_buffer readonly_buffer "
        "bytearray8".split()
    }

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, fix_imports=False, encoding="utf-8")
        self.storages: dict[str, StoredNumbers] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        value = _policy().get(full) or _torch_value(full)
        if value is None:
            raise RefusedError(full)
        return value

    def persistent_load(self, pid: Any) -> StoredNumbers:
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise RefusedError("a module with its source code, or another foreign object")
        _, dtype, key, _, count, *view = pid
        if view not in ([], [None]):
            raise pickle.UnpicklingError("a view of a storage, as torch wrote before 2018")
        valid = isinstance(dtype, torch.dtype) and isinstance(key, str) and type(count) is int
        if not valid or count < 0:
            raise pickle.UnpicklingError("a storage that is none")
        storage = StoredNumbers(key, dtype, count)
        if self.storages.setdefault(key, storage).size != storage.size:
            raise pickle.UnpicklingError(f"storage {key} has two sizes")
        return storage

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Builder) or function.call is None:
            raise RefusedError(f"a call of {getattr(function, 'name', 'what it builds itself')}")
        if not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call without arguments")
        self.stack.append(function.call(*arguments))

    def load_newobj(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if not isinstance(cls, Builder) or cls.new is None or cls.new in (Array, NumberType):
            raise RefusedError(f"an object of {getattr(cls, 'name', 'what it builds itself')}")
        del arguments
        self.stack.append(cls.new.__new__(cls.new))

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, OrderedDict):  # torch notes versions of modules beside weights
            if isinstance(state, dict) and "_metadata" in state:
                target._metadata = state["_metadata"]
        elif isinstance(target, Inert | NumberType | Array | History):
            target.__setstate__(state)
        elif not isinstance(target, StoredTensor | UnusableTensor):
            raise RefusedError(f"a change of {type(target).__name__}")

    def _extend(self, kinds: type | tuple[type, ...], items: list, add: Callable) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            return
        if not isinstance(target, kinds):
            raise RefusedError(f"items in {type(target).__name__}")
        add(target, items)

    def load_append(self) -> None:
        self._extend(list, [self.stack.pop()], list.extend)

    def load_appends(self) -> None:
        self._extend(list, self.pop_mark(), list.extend)

    def load_additems(self) -> None:
        self._extend(set, self.pop_mark(), set.update)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._extend(dict, [key, value], _set_items)

    def load_setitems(self) -> None:
        self._extend(dict, self.pop_mark(), _set_items)

    for _name in "reduce newobj build append appends additems setitem setitems".split():
        dispatch[getattr(pickle, _name.upper())[0]] = locals()[f"load_{_name}"]
    del _name


def _set_items(target: dict, items: list) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[key] = value


# ---------------------------------------------------------------------------------- torch's reader


def torch_builders() -> list[tuple[Any, str]]:
    """The builders for what a Runner's checkpoint holds beside tensors, with their names in files.

    As ``torch.serialization.add_safe_globals`` takes them. The classes stand under their own names,
    too, by which torch allows their objects to be filled.
    """
    pairs = [(new or call, name) for name, (call, new) in _numpy_names().items()]
    own = [(cls, f"{cls.__module__}.{cls.__qualname__}") for cls in (NumberType, Array, History)]
    return [*pairs, *own]


def allow_training_state() -> None:
    """Let ``torch.load(..., weights_only=True)`` read mmengine's checkpoints, in this process.

    Our own programs do not need it. It is for ``mmengine.runner.load_checkpoint`` and the like, and
    called once, when :mod:`odise_mm.models` is imported, as whoever builds a model does.
    """
    torch.serialization.add_safe_globals(torch_builders())
