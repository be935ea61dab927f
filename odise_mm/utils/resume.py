"""Resuming from one's own training checkpoints, safely.

Since torch 2.6 ``torch.load`` refuses whatever is not a tensor or a plain container
(``weights_only=True``). A checkpoint of mmengine's Runner also holds the training curves:
``HistoryBuffer`` objects, their numpy arrays and numpy scalars. These, and nothing else, are
declared safe here, so that ``--resume`` works while a file with code in it stays refused. mmengine
itself needs no change, and ``weights_only`` is never switched off.
"""

from typing import Any

_STATISTICS = ("min", "max", "current", "mean")


def _history_statistic(owner: type, name: str) -> Any:
    """Stand in for ``getattr`` in a checkpoint: yields HistoryBuffer's own four statistics.

    A HistoryBuffer pickles its methods ``min``, ``max``, ``current``, ``mean`` as
    ``getattr(HistoryBuffer, name)``. The real ``getattr`` would let a file reach anything.

    Raises:
        ValueError: anything else was asked for.
    """
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise ValueError(f"refused: a checkpoint may not read the attribute {name!r} of {owner!r}")
    return getattr(HistoryBuffer, name)


def safe_globals() -> list[tuple[Any, str]]:
    """What a Runner's checkpoint needs beyond tensors, as ``torch.serialization`` wants it.

    Both spellings of numpy's core are given: 1.x wrote ``numpy.core``, 2.x ``numpy._core``.

    Returns:
        Pairs of a class or function and the name it has in the file.
    """
    import numpy as np
    from mmengine.logging import HistoryBuffer

    scalar, reconstruct = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    kinds = "?bhilqBHILQefdgFDGSU"  # numbers and text; no objects
    classes = {HistoryBuffer, np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in kinds)}
    # Always with the name: a ``with safe_globals([np.ndarray])`` elsewhere removes its entries
    # at its end, and would take a bare class of ours along.
    return [
        *[(cls, f"{cls.__module__}.{cls.__qualname__}") for cls in classes],
        *[(_history_statistic, f"{module}.getattr") for module in ("builtins", "__builtin__")],
        *[
            (obj, f"numpy.{core}.multiarray.{name}")
            for core in ("core", "_core")
            for obj, name in ((scalar, "scalar"), (reconstruct, "_reconstruct"))
        ],
    ]


def allow_training_state() -> None:
    """Let ``torch.load(..., weights_only=True)`` read training checkpoints, in this process.

    Called when :mod:`odise_mm.registry` is imported, as every config of odise_mm does.
    """
    import torch

    torch.serialization.add_safe_globals(safe_globals())
