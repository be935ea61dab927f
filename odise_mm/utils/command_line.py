"""What all programs share: how mistakes are told, and types of arguments. Imports no torch."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from odise_mm.errors import OdiseError
from odise_mm.utils.display import printable

MISTAKE = 2  # the exit status of argparse for wrong arguments


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can set right ends a program with one message and exit status 2.

    These are the package's own errors, those of files and folders, and numbers that are not
    finite. Anything else is a bug and keeps its traceback.
    """
    try:
        yield
    except (OdiseError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISTAKE)


def positive_int(text: str) -> int:
    """Argument type: a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


class ConfigOptions(argparse.Action):
    """Action of ``--cfg-options``: KEY=VALUE means what it means to mmengine's ``DictAction``.

    The result is a dictionary; options that are given several times are joined. Beyond mmengine,
    dictionaries are read as Python writes them (mmengine would cut them at their commas), and what
    is no option ends the program with one line. mmengine is imported only when there are options.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        defaults = dict(nargs="+", default={}, metavar="KEY=VALUE")
        super().__init__(option_strings, dest, **{**defaults, **kwargs})

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        from mmengine.config import DictAction

        read = DictAction(self.option_strings, self.dest)
        for text in values:
            key, sign, value = text.partition("=")
            if not sign or not all(part.strip() for part in key.split(".")):
                parser.error(f"argument {option_string}: must be KEY=VALUE: {printable(text)}")
            written = _python_dictionary(value)
            if written is not None:
                given = getattr(namespace, self.dest, None) or {}
                setattr(namespace, self.dest, {**given, key: written})
                continue
            try:
                read(parser, namespace, [text])
            except (AssertionError, RecursionError):
                parser.error(
                    f"argument {option_string}: brackets that do not close, or do not hold the "
                    f"whole value: {printable(text)}"
                )


def _python_dictionary(value: str) -> Any:
    """A Python literal with a dictionary in it; None for any other value."""
    if "{" not in value:
        return None
    try:
        found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return found if _holds_dictionary(found) else None


def _holds_dictionary(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_holds_dictionary, value))
    return isinstance(value, dict)
