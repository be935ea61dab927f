"""mmcv's operators with or without a compiled mmcv.

``mmcv`` and ``mmcv-lite`` hold the same Python code; what the latter lacks is the compiled module
``mmcv._ext``, and without it ``import mmcv.ops``, hence ``import mmdet.models``, fails. The fork's
``onedl-mmcv`` lacks it as well, unless pip built it with ``--no-build-isolation``. Of all the
operators in it, Mask2Former's pixel decoder uses one, multi-scale deformable attention (Deformable
DETR, arXiv 2010.04159, Eq. 3), and mmcv has that in plain PyTorch too. So:

=====================================  ==========  ===================  ===================
installed                              CPU tensor  CUDA tensor          other operators
=====================================  ==========  ===================  ===================
mmcv compiled with CUDA                PyTorch     mmcv's CUDA kernel   mmcv's
mmcv compiled without CUDA             PyTorch     PyTorch              mmcv's (CPU)
mmcv-lite, onedl-mmcv not compiled     PyTorch     PyTorch              raise ``MissingOpError``
=====================================  ==========  ===================  ===================

:func:`offer_stand_in`, called by ``import odise_mm``, offers a stand-in for ``mmcv._ext`` to the
import system after all others, so that a compiled module always wins. :func:`choose_ops_backend`,
called by the head that holds the pixel decoder, changes nothing in the first case; in the others it
tells ``mmcv.ops.multi_scale_deform_attn`` that there is no CUDA, which sends every tensor to the
PyTorch formula, on the tensor's own device.
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
_NO_CUDA = "not available"  # what a compiled mmcv without CUDA answers


class MissingOpError(RuntimeError):
    """An operator was called that exists only in a compiled mmcv."""


def _missing(op: str) -> Callable[..., NoReturn]:
    def raise_missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise MissingOpError(
            f"mmcv's operator '{op}' was called, but the installed {_mmcv_name()} has no compiled "
            f"operators. Install a compiled one in its place: {_how_to_compile()} (compiles for 10 "
            "to 20 minutes; see 'Compiled mmcv' in the README)."
        )

    raise_missing.__name__ = op
    return raise_missing


class _StandIn(ModuleType):
    """``mmcv._ext`` of mmcv-lite: has every operator by name, and none by deed."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return _missing(name)

    # Environment reports call these two; they are questions, not operators.
    @staticmethod
    def get_compiler_version() -> str:
        return "n/a"

    @staticmethod
    def get_compiling_cuda_version() -> str:
        return _NO_CUDA


class _StandInFinder(MetaPathFinder, Loader):
    """Last finder of the import system: asked for ``mmcv._ext`` only if no file has it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname == _EXT else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


_finder = _StandInFinder()
_logged = False


def offer_stand_in() -> None:
    """Make ``mmcv.ops``, hence ``mmdet.models``, importable with mmcv-lite. Imports nothing."""
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)


def ops_backend() -> Literal["compiled", "pytorch"]:
    """What runs multi-scale deformable attention on a CUDA tensor.

    Returns:
        "compiled" for mmcv's CUDA kernel, "pytorch" for the formula in plain PyTorch. On a CPU
        tensor it is always the formula; mmcv has no CPU kernel for it.

    Raises:
        ImportError: mmcv is absent, or its compiled module doesn't fit the installed torch.
    """
    try:
        ext = importlib.import_module(_EXT)
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        raise ImportError(
            f"The compiled operators of {_mmcv_name()} do not load; most likely mmcv was compiled "
            f"for another torch. Compile it anew, or replace it: {_how_to_do_without()}. "
            f"The reason given: {error}"
        ) from error
    return "pytorch" if ext.get_compiling_cuda_version() == _NO_CUDA else "compiled"


def choose_ops_backend() -> None:
    """Let deformable attention run on every device, and log once per process, at INFO, what does.

    Raises:
        ImportError: see :func:`ops_backend`.
    """
    global _logged
    backend = ops_backend()
    if backend == "pytorch":
        # The only use of this name in that module is the choice between kernel and formula.
        importlib.import_module(_ATTENTION).IS_CUDA_AVAILABLE = False
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
    """Return the distribution that provides ``mmcv`` and its version; a compiled one goes first."""
    for name in ("mmcv", "mmcv-lite", "onedl-mmcv"):
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return "mmcv", ""


def _mmcv_name() -> str:
    """Return name and version of the distribution that provides ``mmcv``."""
    return " ".join(_mmcv()).rstrip()


# With the wheel that pip keeps of an earlier build, the fork would be what it was.
_FORK_ANEW = f'--no-cache-dir --no-deps --force-reinstall "{"".join(FORK["mmcv"])}"'


def _how_to_compile() -> str:
    """Return the command that gives the installed mmcv compiled operators."""
    if _mmcv()[0] == "onedl-mmcv":
        return f"pip install --no-build-isolation {_FORK_ANEW}"
    return 'pip uninstall -y mmcv-lite, then pip install --no-build-isolation "mmcv>=2.0.1,<2.2"'


def _how_to_do_without() -> str:
    """Return the command that replaces a compiled mmcv by one without operators."""
    if _mmcv()[0] == "onedl-mmcv":
        return f"pip install {_FORK_ANEW}"
    return 'pip uninstall -y mmcv && pip install "mmcv-lite>=2.0.1,<2.2"'
