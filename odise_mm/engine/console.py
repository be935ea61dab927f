"""What a run shows on the console: losses and results always, details only in the log file."""

from __future__ import annotations

import logging
import re

# Messages that belong to the log file: descriptions of the environment, the config and the hooks, a
# line per parameter without weight decay, and notes of mmengine about its own old functions.
_DETAILS = (
    "System environment:",
    "Config:",
    "Hooks will be executed in the following order:",
    "paramwise_options -- ",
    "Exp name: ",
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
)
# Methods of mmengine's LoggerHook that log losses, and the results of a validation.
_NUMBERS = ("after_train_iter", "after_val_epoch")
_PROGRESS = ("after_val_iter", "after_test_iter")
_POSITION = re.compile(r"\[\s*(\d+)/(\d+)\]")


class ConsoleFilter(logging.Filter):
    """Choose the messages that the console shows.

    * Losses and the results of validations are shown at every level.
    * The environment, the config and other details are not shown. The log file has them.
    * The progress of a validation or test is shown at most ten times.

    Args:
        level: lowest level of all other messages to show, as in :mod:`logging`.
    """

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level
        self._shown = -1  # tenths of the current validation

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to show a message."""
        message = record.getMessage().lstrip("-\n ")
        if message.startswith(_DETAILS):
            return False
        by_hook = record.filename == "logger_hook.py"
        if by_hook and record.funcName in _NUMBERS:
            self._shown = -1
            return True
        if record.levelno < self.level:
            return False
        return not (by_hook and record.funcName in _PROGRESS) or self._is_next_tenth(message)

    def _is_next_tenth(self, message: str) -> bool:
        position = _POSITION.search(message)
        if position is None:
            return True
        done, total = map(int, position.groups())
        tenth = 10 * done // total
        new = tenth != self._shown and tenth > 0
        self._shown = tenth
        return new


def quiet_console(logger: logging.Logger, level: int) -> None:
    """Add a :class:`ConsoleFilter` to the console handler of mmengine's logger.

    Args:
        logger: the logger. The levels of its handlers are at most INFO, except for the console of
            processes other than the first, which shows only errors.
        level: lowest level of messages to show on the console.
    """
    for handler in logger.handlers:
        on_console = type(handler) is logging.StreamHandler and handler.level < logging.ERROR
        if on_console and not any(isinstance(f, ConsoleFilter) for f in handler.filters):
            handler.addFilter(ConsoleFilter(level))
