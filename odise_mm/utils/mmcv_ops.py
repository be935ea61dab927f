"""Support for mmcv's operators with or without a compiled mmcv.

``mmcv`` and ``mmcv-lite`` have the same Python code, but ``mmcv-lite`` lacks the compiled module
``mmcv._ext``. So does the fork's ``onedl-mmcv``, unless pip built it with
``--no-build-isolation``. Without that module, ``import mmcv.ops`` and therefore
``import mmdet.models`` fail. The only operator that Mask2Former's pixel decoder needs is
multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3), which
:mod:`odise_mm.utils.deformable_attention` implements in plain PyTorch. With this module:

=====================================  ==========  ===================  ===================
installed                              CPU tensor  CUDA tensor          other operators
=====================================  ==========  ===================  ===================
mmcv compiled with CUDA                PyTorch     mmcv's CUDA kernel   mmcv's
mmcv compiled without CUDA             PyTorch     PyTorch              mmcv's (CPU)
mmcv-lite, onedl-mmcv not compiled     PyTorch     PyTorch              raise ``MissingOpError``
=====================================  ==========  ===================  ===================

:func:`offer_stand_in`, called by ``import odise_mm``, registers a stand-in for ``mmcv._ext`` as the
last finder of the import system, so a compiled module takes precedence. :func:`choose_ops_backend`
is called by the head that contains the pixel decoder. It replaces mmcv's PyTorch function, which is
slower. Without a CUDA kernel, it also disables the CUDA branch of
``mmcv.ops.multi_scale_deform_attn``, so that every tensor is processed in PyTorch, on its own
device.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, Literal, NoReturn

from odise_mm.utils.requirements import FORK

_EXT = "mmcv._ext"
_ATTENTION = "mmcv.ops.multi_scale_deform_attn"
_NO_CUDA = "not available"  # reported by a compiled mmcv without CUDA


class MissingOpError(RuntimeError):
    """Raised by operators that only exist in a compiled mmcv."""


def _missing(op: str) -> Callable[..., NoReturn]:
    def raise_missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise MissingOpError(
            f"mmcv's operator '{op}' was called, but the installed {_mmcv_name()} has no compiled "
            f"operators. Install a compiled one instead: {_how_to_compile()} (compiles for 10 "
            "to 20 minutes; see 'Compiled mmcv' in the README)."
        )

    raise_missing.__name__ = op
    return raise_missing


class _StandIn(ModuleType):
    """Stand-in for ``mmcv._ext``, whose operators raise :class:`MissingOpError`."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return _missing(name)

    # Environment reports call these two functions.
    @staticmethod
    def get_compiler_version() -> str:
        return "n/a"

    @staticmethod
    def get_compiling_cuda_version() -> str:
        return _NO_CUDA


class _StandInFinder(MetaPathFinder, Loader):
    """Last finder of the import system, only used if there is no compiled ``mmcv._ext``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname == _EXT else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing, as the stand-in has no code to run."""


_finder = _StandInFinder()
_logged = False


def offer_stand_in() -> None:
    """Make ``mmcv.ops`` and ``mmdet.models`` importable with mmcv-lite. Imports nothing itself."""
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)


def ops_backend() -> Literal["compiled", "pytorch"]:
    """Return the implementation of multi-scale deformable attention for CUDA tensors.

    Returns:
        "compiled" for mmcv's CUDA kernel, "pytorch" for plain PyTorch. CPU tensors always use plain
        PyTorch, as mmcv has no CPU kernel.

    Raises:
        ImportError: If mmcv is missing, or its compiled module does not match the installed torch.
    """
    try:
        ext = importlib.import_module(_EXT)
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        raise ImportError(
            f"The compiled operators of {_mmcv_name()} cannot be loaded, probably because mmcv was "
            "compiled for another version of torch. Recompile it, or replace it: "
            f"{_how_to_do_without()}. Original error: {error}"
        ) from error
    return "pytorch" if ext.get_compiling_cuda_version() == _NO_CUDA else "compiled"


def choose_ops_backend() -> None:
    """Make deformable attention run on every device, and log its implementation once per process.

    Raises:
        ImportError: See :func:`ops_backend`.
    """
    global _logged
    backend = ops_backend()
    from odise_mm.utils.deformable_attention import deformable_attention

    attention: Any = importlib.import_module(_ATTENTION)
    attention.multi_scale_deformable_attn_pytorch = deformable_attention
    if backend == "pytorch":
        # In that module, this flag only selects between the kernel and plain PyTorch.
        attention.IS_CUDA_AVAILABLE = False
    if _logged:
        return
    from mmengine.logging import print_log

    if backend == "compiled":
        path = f"CUDA kernel of {_mmcv_name()} (plain PyTorch for CPU tensors)"
    else:
        path = f"plain PyTorch on every device ({_mmcv_name()} has no CUDA kernels)"
    print_log(f"Multi-scale deformable attention: {path}.", logger="current")
    _logged = True


def _mmcv() -> tuple[str, str]:
    """Return name and version of the distribution that provides ``mmcv``, a compiled one first."""
    for name in ("mmcv", "mmcv-lite", "onedl-mmcv"):
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return "mmcv", ""


def _mmcv_name() -> str:
    """Return name and version of the distribution as text, e.g. "mmcv-lite 2.1.0"."""
    return " ".join(_mmcv()).rstrip()


# Without these options, pip would reuse its cached wheel of the earlier build.
_FORK_ANEW = f'--no-cache-dir --no-deps --force-reinstall "{"".join(FORK["mmcv"])}"'


def _how_to_compile() -> str:
    """Return the command that installs mmcv with compiled operators."""
    if _mmcv()[0] == "onedl-mmcv":
        return f"pip install --no-build-isolation {_FORK_ANEW}"
    return 'pip uninstall -y mmcv-lite, then pip install --no-build-isolation "mmcv>=2.0.1,<2.2"'


def _how_to_do_without() -> str:
    """Return the command that replaces a compiled mmcv with one without operators."""
    if _mmcv()[0] == "onedl-mmcv":
        return f"pip install {_FORK_ANEW}"
    return 'pip uninstall -y mmcv && pip install "mmcv-lite>=2.0.1,<2.2"'
