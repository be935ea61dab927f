"""Run a function as soon as a module of another package has been imported, without importing it.

The packages below take seconds to import; what odise_mm has to set in them should cost nothing to
those who only read a vocabulary or ask a tool for its ``--help``.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Callback = Callable[[ModuleType], None]


class _AfterImport(MetaPathFinder):
    """First finder of the import system: lets the others find a module and adds a callback."""

    def __init__(self) -> None:
        self.callbacks: dict[str, list[Callback]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.callbacks:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                break
        else:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            for callback in self.callbacks[fullname]:
                callback(module)

        spec.loader.exec_module = exec_module
        return spec


_finder = _AfterImport()


def after_import(name: str, callback: Callback) -> None:
    """Call ``callback(module)`` once the module ``name`` is imported; now, if it already is.

    Args:
        name: full dotted name of the module.
        callback: called with the module. What it raises reaches whoever imports the module.
    """
    callbacks = _finder.callbacks.setdefault(name, [])
    if callback in callbacks:
        return
    callbacks.append(callback)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    if name in sys.modules:
        callback(sys.modules[name])
