"""The command ``odise-mm``, which runs one of its subcommands."""

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
    "segment": "segment images with class names of your choice",
    "label": "label a large collection of images, on any number of GPUs",
    "explain": "show why an image was segmented as it was",
    "convert": "convert segmented images to the formats of other tools",
    "teach": "teach classes by examples, without training",
    "prepare": "check and split a folder of your own data, and write a config for it",
    "train": "train a model",
    "export": "export a model to ONNX or torch.export",
    "serve": "serve a model over HTTP",
    "test": "measure PQ, mAP and mIoU on one or several test sets",
    "download": "download published weights and label files beforehand",
    "info": "show versions, devices, folders, configs and weights",
}
NAME = "odise-mm"


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the options before the subcommand."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    parser = Parser(
        "Open-vocabulary panoptic segmentation with diffusion models.",
        prog=NAME,
        usage=f"{NAME} [-h] [--version] COMMAND ...",
        epilog="\n".join(
            ["commands:", *lines, "", f"`{NAME} COMMAND --help` shows the options of a command."]
        ),
    )
    parser.add_argument("--version", action="version", version=f"odise_mm {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: Name of the subcommand and its arguments. Defaults to those of the process.

    Returns:
        The subcommand's exit status, or 2 without a subcommand. Other errors end the program with
        one line and status 2, Ctrl-C with status 130.
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
            if close:
                hint = f"did you mean {close[0]}?"
            else:
                hint = f"choose from {', '.join(COMMANDS)}"
            parser.error(f"unknown command {name!r} ({hint})")
        return import_module(f"odise_mm.cli.{name}").main(arguments, f"{NAME} {name}")


if __name__ == "__main__":
    sys.exit(main())
