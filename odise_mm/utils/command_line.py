"""Helpers for all programs: errors, signals and argument types. Does not import torch."""

from __future__ import annotations

import argparse
import ast
import logging
import math
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from odise_mm.errors import OdiseError
from odise_mm.utils.display import printable

MISTAKE = 2  # exit status of argparse for wrong arguments
BY_SIGNAL = 128  # shells report a program killed by signal N with exit status 128 + N
INTERRUPTED = BY_SIGNAL + signal.SIGINT
NOBODY_READS = 141  # exit status of a program killed by SIGPIPE (13)


class Parser(argparse.ArgumentParser):
    """Argument parser that keeps the layout of the description and prints errors in one line.

    Options cannot be abbreviated: ``--conf`` would otherwise mean ``--config``.
    """

    def __init__(self, description: str | None = None, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(description=description, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Exit with an error message in which control characters are escaped."""
        super().error(printable(message))


class Ended(KeyboardInterrupt):
    """Raised like KeyboardInterrupt when a signal asks the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block like Ctrl-C, so that its resources are released.

    Ignored signals (e.g. under ``nohup``) stay ignored. Does nothing outside the main thread.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise Ended(number)

    names = ("SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {n: signal.getsignal(n) for n in numbers}
    before = {n: handler for n, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def one_line_errors(interrupted: str = "interrupted") -> Iterator[None]:
    """End the program with one message and exit status 2 on errors that a user can fix.

    These are the package's own errors, OSError, and FloatingPointError. Anything else is a bug and
    keeps its traceback. Ctrl-C also ends the program with one line, and with the usual exit status.
    If the output is closed (``| head``), the program ends silently.

    Args:
        interrupted: Message after Ctrl-C.
    """
    try:
        with _guarded_logging():
            yield
            sys.stdout.flush()
    except (OdiseError, OSError, FloatingPointError) as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            _end_quietly()
        _print_error(f"error: {printable(error)}")
        sys.exit(MISTAKE)
    except KeyboardInterrupt as error:
        _print_error(interrupted)
        sys.exit(BY_SIGNAL + getattr(error, "number", signal.SIGINT))
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # raised by rich
            _end_quietly()
        raise


def _print_error(text: str) -> None:
    with suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


def _output_is_closed() -> bool:
    """Return whether the reader of stdout or stderr has gone; other pipes may break, too."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # not a file with a descriptor
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLOUT)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                return True
    return False


def _end_quietly() -> NoReturn:
    """Exit without Python's own message about output that could not be flushed."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            os.dup2(devnull, stream.fileno())
    sys.exit(NOBODY_READS)


@contextmanager
def _guarded_logging() -> Iterator[None]:
    """Escape control characters in log records, and end the program if the output is closed.

    By default, logging prints a traceback for every line that it cannot write.
    """
    handle_error, make = logging.Handler.handleError, logging.getLogRecordFactory()

    def handle(handler: logging.Handler, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            raise
        handle_error(handler, record)

    def make_safe(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if isinstance(record.msg, str):
            text = record.getMessage()
            lines = [printable(line) for line in text.split("\n")]  # dumped configs have many
            if lines != text.split("\n"):
                record.msg, record.args = "\n".join(lines).replace("\\t", "\t"), ()
        return record

    logging.Handler.handleError = handle
    logging.setLogRecordFactory(make_safe)
    try:
        yield
    finally:
        logging.Handler.handleError = handle_error
        logging.setLogRecordFactory(make)


def positive_int(text: str) -> int:
    """Parse a positive integer, as the ``type`` of an argument."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def whole_number(text: str) -> int:
    """Parse a whole number, not negative, as the ``type`` of an argument."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative: {value}")
    return value


def fraction(text: str) -> float:
    """Parse a number from 0 to 1, as the ``type`` of an argument."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text}")
    return value


def seconds(text: str) -> float:
    """Parse a time in seconds, not negative, as the ``type`` of an argument."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds from 0, not {text}")
    return value


def positive_number(text: str) -> float:
    """Parse a positive number, as the ``type`` of an argument."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text}")
    return value


class ConfigOptions(argparse.Action):
    """Action for ``--cfg-options`` that parses KEY=VALUE like mmengine's ``DictAction``.

    The result is a dictionary. Repeated options are merged. In addition to mmengine, dictionaries
    in Python syntax are supported (mmengine would split them at commas), and invalid options end
    the program with one line. mmengine is imported only if there are options.
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
            literal = _python_dictionary(value)
            if literal is not None:
                given = getattr(namespace, self.dest, None) or {}
                setattr(namespace, self.dest, {**given, key: literal})
                continue
            try:
                read(parser, namespace, [text])
            except (AssertionError, RecursionError):
                parser.error(
                    f"argument {option_string}: unbalanced brackets, or brackets around only a "
                    f"part of the value: {printable(text)}"
                )


def _python_dictionary(value: str) -> Any:
    """Parse a Python literal that contains a dictionary; return None for any other value."""
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
