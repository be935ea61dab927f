"""What all programs share: how they end, and types of arguments. Imports no torch."""

from __future__ import annotations

import argparse
import ast
import logging
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

MISTAKE = 2  # the exit status of argparse for wrong arguments
BY_SIGNAL = 128  # a shell's exit status of a program that a signal ended is this more
INTERRUPTED = BY_SIGNAL + signal.SIGINT
NOBODY_READS = 141  # as SIGPIPE (13) would have ended the program


class Parser(argparse.ArgumentParser):
    """argparse's parser with the module's docstring as it is, and mistakes in one safe line."""

    def __init__(self, description: str | None = None, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(description=description, **kwargs)

    def error(self, message: str) -> NoReturn:
        """End the program; what the message repeats of the arguments cannot steer a terminal."""
        super().error(printable(message))


class Ended(KeyboardInterrupt):
    """A signal asks the program to end, in the way that Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that what it holds is closed.

    Signals that are ignored (as under ``nohup``) stay so. Does nothing outside the main thread.
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
    """What a user can set right ends a program with one message and exit status 2.

    These are the package's own errors, those of files and folders, and numbers that are not
    finite. Anything else is a bug and keeps its traceback. Ctrl-C ends it with one line, too, and
    the status that shells have for it. Where nobody reads what is printed any more (``| head``),
    the program ends without a word.

    Args:
        interrupted: what is said after Ctrl-C.
    """
    try:
        with _guarded_logging():
            yield
            sys.stdout.flush()
    except (OdiseError, OSError, FloatingPointError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            _end_quietly()
        _say(f"error: {printable(error)}")
        sys.exit(MISTAKE)
    except KeyboardInterrupt as error:
        _say(interrupted)
        sys.exit(BY_SIGNAL + getattr(error, "number", signal.SIGINT))
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # of rich
            _end_quietly()
        raise


def _say(text: str) -> None:
    with suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


def _nobody_reads() -> bool:
    """Whether the reader of what is printed has gone; other pipes break for other reasons."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # no file, or none that has a number
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLOUT)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                return True
    return False


def _end_quietly() -> NoReturn:
    """End without Python's own complaint about what could not be written."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    sys.exit(NOBODY_READS)


@contextmanager
def _guarded_logging() -> Iterator[None]:
    """What libraries log cannot steer a terminal, and ends the program where nobody reads it.

    Without this, logging prints a traceback for every line that it cannot write.
    """
    complain, make = logging.Handler.handleError, logging.getLogRecordFactory()

    def handle(handler: logging.Handler, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            raise
        complain(handler, record)

    def make_safe(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if isinstance(record.msg, str):
            text = record.getMessage()
            lines = [printable(line) for line in text.split("\n")]  # configs have many
            if lines != text.split("\n"):
                record.msg, record.args = "\n".join(lines).replace("\\t", "\t"), ()
        return record

    logging.Handler.handleError = handle
    logging.setLogRecordFactory(make_safe)
    try:
        yield
    finally:
        logging.Handler.handleError = complain
        logging.setLogRecordFactory(make)


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
