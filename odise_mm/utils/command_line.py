"""What all programs share: how mistakes are told, and types of arguments. Imports no torch."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from odise_mm.errors import OdiseError

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


def cfg_option(text: str) -> tuple[str, object]:
    """Argument type: KEY=VALUE; a value as in Python, true, false, none, or else text."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE: {text}")
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return key, words[value.lower()]
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
