"""Download published weights and label files, so that nothing has to be fetched later.

For a config, this downloads its published checkpoint and the frozen models that it names. For a
name such as openseg:coco_panoptic, it downloads that label file. Files go to the usual caches,
which `odise-mm info` shows. Existing files are kept, and the next run continues an interrupted
download.

Examples:
    odise-mm download odise_coco_label
    odise-mm download odise_coco_label odise_coco_caption openseg:coco_panoptic --yes
"""

from __future__ import annotations

import argparse
import sys

from odise_mm.errors import CheckpointError
from odise_mm.utils.command_line import Parser, ended_by_signals, one_line_errors
from odise_mm.utils.display import printable

GO_ON = "run the same command again to continue"


def parse_args(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__, prog=prog)
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="config file, its name under configs/, or a published label file",
    )
    parser.add_argument(
        "--yes",
        action="store_true",
        help="agree to the licenses without being asked; they are shown nevertheless",
    )
    parser.add_argument(
        "--no-frozen",
        action="store_true",
        help="only checkpoints, without the frozen models (diffusion model, CLIP)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return 0; errors exit with status 2, like argparse."""
    args = parse_args(argv, prog)
    with one_line_errors(f"interrupted; {GO_ON}"), ended_by_signals():
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Download everything and print where it is; return the exit status."""
    from odise_mm.checkpoints.published_weights import fetch
    from odise_mm.vocabulary.label_files import find_label_file, is_published

    for name in args.names:
        if is_published(name):
            path, _ = find_label_file(name)
        else:
            path = fetch(
                name, ask=lambda notice: agrees(notice, args.yes), frozen=not args.no_frozen
            )
        place = "frozen models are available, no checkpoint is published" if path is None else path
        print(printable(f"{name}: {place}"))
    return 0


def agrees(notice: str, yes: bool) -> bool:
    """Show a license notice, and ask for agreement unless the user agreed beforehand.

    Args:
        notice: Text of several lines.
        yes: Whether ``--yes`` was given.

    Returns:
        Whether to download.

    Raises:
        CheckpointError: ``--yes`` was not given, and stdin is not a terminal.
    """
    print("\n".join(map(printable, notice.splitlines())), file=sys.stderr)
    if yes:
        return True
    if not sys.stdin.isatty():
        raise CheckpointError(
            "nothing was downloaded; agree to these licenses with --yes, or run this in a terminal"
        )
    print("Download? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().casefold() in ("y", "yes")
