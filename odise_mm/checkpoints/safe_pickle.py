"""A pickle reader for torch's files that builds only objects from an allowlist.

A pickle is a program for a small virtual machine. This reader supports only the opcodes that are
needed for containers, numbers, text and tensors, and calls only functions of this module. A few
harmless classes that checkpoints contain besides weights (callbacks, settings) are replaced by
empty placeholders. A file that names any other class or function is rejected without running
anything from it.

Arrays of numpy are built from their shape, dtype and bytes, the curves of mmengine's runs
(``HistoryBuffer``) from their arrays. mmengine resumes with ``torch.load(..., weights_only=True)``,
which gets the same builders for these once, when :mod:`odise_mm.models` is imported. The reader of
this package does not use torch's allowlist, which other libraries can change.
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
    """Error for a pickle that uses something that weights do not need.

    Attributes:
        what: the class, function or operation that was rejected.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"refused: {what}")
        self.what = what


# --------------------------------------------------------------------------------------- tensors


@dataclass(frozen=True)
class StoredNumbers:
    """A storage in the file: ``count`` numbers of one dtype, not read yet."""

    key: str
    dtype: torch.dtype
    count: int

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in the file, as a view of a storage that is not read yet."""

    storage: StoredNumbers
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class UnusableTensor:
    """A tensor that is not a plain strided tensor; ``kind`` describes it for messages."""

    kind: str


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, dtype: torch.dtype | None = None
) -> StoredTensor | UnusableTensor:
    if not isinstance(storage, StoredNumbers):
        raise pickle.UnpicklingError("a tensor without a storage")
    dtype = storage.dtype if dtype is None else dtype
    if not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a tensor without a valid dtype")
    shape, stride = tuple(shape), tuple(stride)
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor with an invalid shape")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if 0 not in shape and (last + 1) * dtype.itemsize > storage.size:
        raise pickle.UnpicklingError(
            f"a tensor of shape {shape} does not fit into its storage of {storage.size} bytes"
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
    "torch._utils._rebuild_wrapper_subclass": "of a wrapper subclass",
    "torch._utils._rebuild_device_tensor_from_numpy": "of an unsupported device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "of an unsupported device",
}


# ----------------------------------------------------------------------------------------- numpy


class NumberType:
    """Placeholder for numpy's dtype while a file is read: booleans, integers, floats, complex."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biufc](1|2|4|8|16|32)", code):
            raise RefusedError(f"numpy's dtype {str(code)[:40]!r}, which is not numeric")
        self.code = code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        order, *rest = state[1:] if isinstance(state, tuple) else ("",)
        if order not in ("<", ">", "|", "=") or rest[:3] != [None] * 3:
            raise RefusedError("a structured dtype of numpy")
        self.order = order

    @property
    def dtype(self) -> np.dtype:
        """The numpy dtype."""
        return np.dtype(self.order + self.code)


class Array(np.ndarray):
    """Placeholder for numpy's array while a file is read; it is pickled as a numpy array.

    Numbers in another byte order are converted to the native one.
    """

    def __new__(cls, *_: Any) -> Array:
        raise RefusedError("an array that is not built from its numbers")

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        flat = _numbers(kind, data)
        if not isinstance(shape, tuple) or any(type(n) is not int or n < 0 for n in shape):
            raise RefusedError("an array with an invalid shape")
        if flat.size != math.prod(shape):
            raise RefusedError(f"an array of {flat.size} numbers instead of {math.prod(shape)}")
        values = flat.reshape(shape, order="F" if fortran else "C")
        super().__setstate__(values.__reduce__()[2])

    def __reduce__(self) -> tuple:
        return np.array(self).__reduce__()


def _numbers(kind: Any, data: Any) -> np.ndarray:
    if not isinstance(kind, NumberType) or not isinstance(data, bytes):
        raise RefusedError("a numpy array that does not consist of plain numbers")
    return np.frombuffer(data, kind.dtype)


def _empty_array(cls: Any, *_: Any) -> Array:
    if cls is not Array and getattr(cls, "new", None) is not Array:
        raise RefusedError("an array of another class than numpy.ndarray")
    return np.empty(0).view(Array)


def _scalar(kind: Any, data: Any) -> np.generic:
    (value,) = _numbers(kind, data)
    return value


# --------------------------------------------------------------------------------------- mmengine


class History(HistoryBuffer):
    """Placeholder for mmengine's HistoryBuffer while a file is read; becomes one afterwards."""

    def __setstate__(self, state: Any) -> None:
        log, count = (np.asarray(state[key]) for key in ("_log_history", "_count_history"))
        limit = state.get("max_length", state.get("_max_length", 1_000_000))
        if type(limit) is not int or log.shape != count.shape or log.ndim != 1:
            raise RefusedError("a history that does not consist of two rows of numbers")
        HistoryBuffer.__init__(self, log, count, limit)
        self.__class__ = HistoryBuffer


def _statistic(owner: Any, name: Any) -> Any:
    """Replace ``getattr``, with which a HistoryBuffer pickles its four statistics."""
    if (owner is not History and getattr(owner, "new", None) is not History) or (
        name not in _STATISTICS
    ):
        raise RefusedError(f"builtins.getattr of {str(name)[:40]!r}")
    return name


# ------------------------------------------------------------------------------------- the policy


class Inert:
    """Placeholder that ignores all arguments, state and items."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Builder:
    """Replacement for a class or function that a pickle names.

    Attributes:
        name: full name in the file.
        call: function that is called instead; None if calls are rejected.
        new: class that is instantiated instead; None if instantiation is rejected.
    """

    name: str
    call: Callable[..., Any] | None = None
    new: type | None = None


_INERT = (
    # In original Stable Diffusion files and other files written with Lightning.
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    # Settings of training runs, in files of timm and many others.
    "argparse.Namespace",
    *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in
      ("Posix", "Windows", "PurePosix", "PureWindows")),
    # Used by tensors that are not plain strided tensors.
    "torch.serialization._get_layout",
    "torch.nested._internal.nested_tensor.NestedTensor",
    "torch._dynamo.decorators._DimRange",
    *(f"torch.per_{what}_affine" for what in ("tensor", "channel")),
    "torch.per_channel_affine_float_qparams",
    "torch.per_channel_symmetric",
    "torch.per_tensor_symmetric",
)  # fmt: skip


def _numpy_names() -> dict[str, tuple[Callable[..., Any], type | None]]:
    """Return replacements for the names in numpy 1 and 2, mmengine and Python 2 and 3.

    Returns:
        Function to call and class to instantiate (see :class:`Builder`) by full name.
    """
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
    """Return empty bytes, which old pickle protocols write as a call without arguments."""
    if arguments:
        raise RefusedError("a call of bytes with arguments")
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
        raise RefusedError("_codecs.encode of something other than bytes")
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
    # Read as raw bytes; tensors of these dtypes are never returned.
    "QInt8": torch.int8,
    "QUInt8": torch.uint8,
    "QInt32": torch.int32,
    "QUInt4x2": torch.uint8,
    "QUInt2x4": torch.uint8,
    "Untyped": torch.uint8,
}


def _torch_value(name: str) -> Any:
    """Return the dtype that a name of a dtype or storage of torch means; None for other names."""
    module, _, last = name.rpartition(".")
    if module in ("torch", "torch.cuda", "torch.storage") and last.endswith("Storage"):
        return _STORAGES.get(last.removesuffix("Storage"))
    value = getattr(torch, last, None) if module == "torch" else None
    return value if isinstance(value, torch.dtype) else None


# ------------------------------------------------------------------------------------- the reader


class Unpickler(pickle._Unpickler):
    """Unpickler that builds only objects of the policy above.

    Derived from Python's pure-Python unpickler, without the opcodes that are not needed: those that
    use registries of the process, and objects with keyword arguments.

    Args:
        file: stream with ``read`` and ``readline``.

    Attributes:
        storages: storages that the pickle refers to, by key.
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
        """Return the replacement for a class or function; raise ``RefusedError`` if unknown."""
        full = f"{module}.{name}"
        value = _policy().get(full) or _torch_value(full)
        if value is None:
            raise RefusedError(full)
        return value

    def persistent_load(self, pid: Any) -> StoredNumbers:
        """Return the storage that a persistent id describes, without reading it."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise RefusedError("a module with its source code, or another external object")
        _, dtype, key, _, count, *view = pid
        if view not in ([], [None]):
            raise pickle.UnpicklingError("a view of a storage, as torch wrote them before 2018")
        valid = isinstance(dtype, torch.dtype) and isinstance(key, str) and type(count) is int
        if not valid or count < 0:
            raise pickle.UnpicklingError("an invalid storage")
        storage = StoredNumbers(key, dtype, count)
        if self.storages.setdefault(key, storage).size != storage.size:
            raise pickle.UnpicklingError(f"storage {key} has two sizes")
        return storage

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Builder) or function.call is None:
            raise RefusedError(f"a call of {getattr(function, 'name', 'an object that it built')}")
        if not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call without arguments")
        self.stack.append(function.call(*arguments))

    def load_newobj(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if not isinstance(cls, Builder) or cls.new is None or cls.new in (Array, NumberType):
            raise RefusedError(f"an instance of {getattr(cls, 'name', 'an object that it built')}")
        del arguments
        self.stack.append(cls.new.__new__(cls.new))

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, OrderedDict):  # torch stores versions of modules with the weights
            if isinstance(state, dict) and "_metadata" in state:
                target._metadata = state["_metadata"]
        elif isinstance(target, Inert | NumberType | Array | History):
            target.__setstate__(state)
        elif not isinstance(target, StoredTensor | UnusableTensor):
            raise RefusedError(f"a state for {type(target).__name__}")

    def _extend(self, kinds: type | tuple[type, ...], items: list, add: Callable) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            return
        if not isinstance(target, kinds):
            raise RefusedError(f"items for {type(target).__name__}")
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
    """Return the builders for objects other than tensors in a Runner's checkpoint, with names.

    The format is that of ``torch.serialization.add_safe_globals``. The classes are listed under
    their own names too, because torch requires that to set the state of their instances.
    """
    pairs = [(new or call, name) for name, (call, new) in _numpy_names().items()]
    own = [(cls, f"{cls.__module__}.{cls.__qualname__}") for cls in (NumberType, Array, History)]
    return [*pairs, *own]


def allow_training_state() -> None:
    """Let ``torch.load(..., weights_only=True)`` read mmengine's checkpoints in this process.

    Our own programs do not need this; ``mmengine.runner.load_checkpoint`` and similar functions do.
    It is called once, when :mod:`odise_mm.models` is imported.
    """
    torch.serialization.add_safe_globals(torch_builders())
