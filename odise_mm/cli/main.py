"""The command ``odise-mm``, which hands its arguments to one of its subcommands."""

from __future__ import annotations

import argparse
import difflib
import sys
from importlib import import_module

from odise_mm.utils.command_line import MISTAKE, Parser, one_line_errors
from odise_mm.version import __version__

# To add a subcommand, write a module of its name with `parse_args(argv, prog)` and
# `main(argv, prog) -> exit status`, and add a line here.
COMMANDS = {
    "segment": "segment images, with class names of your choice",
    "train": "train a model as its config says",
    "test": "measure PQ, mAP and mIoU on one or several test sets",
    "download": "fetch published weights and files of class names beforehand",
    "info": "show versions, devices, folders, configs and weights",
}
NAME = "odise-mm"


def make_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    parser = Parser(
        "Open-vocabulary panoptic segmentation with diffusion models.",
        prog=NAME,
        usage=f"{NAME} [-h] [--version] COMMAND ...",
        epilog="\n".join(
            ["commands:", *lines, "", f"`{NAME} COMMAND --help` shows what a command takes."]
        ),
    )
    parser.add_argument("--version", action="version", version=f"odise_mm {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: name of the subcommand and its arguments; those of the process by default.

    Returns:
        The subcommand's exit status, or 2 when none is named. Other mistakes end the program with
        one line and the status 2, Ctrl-C with 130.
    """
    words = sys.argv[1:] if argv is None else argv
    with one_line_errors():
        parser = make_parser()
        if not words:
            parser.print_help(sys.stderr)
            return MISTAKE
        name, *arguments = words
        if name not in COMMANDS:
            if name.startswith("-"):
                parser.parse_args(words[:1])  # ends the program unless the option is unknown
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            mean = f"; did you mean {close[0]}?" if close else f" (of {', '.join(COMMANDS)})"
            parser.error(f"there is no command {name!r}{mean}")
        return import_module(f"odise_mm.cli.{name}").main(arguments, f"{NAME} {name}")
