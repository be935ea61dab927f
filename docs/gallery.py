#!/usr/bin/env python
"""Run the commands of docs/gallery.md and make its pictures again.

A picture of the page stands below a comment with the file that the commands above it write: an
image, or a video, of which four frames are shown. The screenshot of the web page is made by
docs/web_screenshots.py.

Example:
    python docs/gallery.py
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from odise_mm.utils.command_line import Parser

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "gallery.md"
FRAMES = 4
MIN_WIDTH, MAX_WIDTH = 1100, 1400  # pixels
PART = re.compile(
    r"^```shell\n(?P<commands>.*?)^```$"
    r"|^<!-- picture (?P<file>\S+) -->\n!\[[^\]]+\]\((?P<image>\S+)\)$",
    re.M | re.S,
)


class Picture(NamedTuple):
    """A picture of the page."""

    commands: str
    """What writes the file, for a shell."""
    file: str
    """File relative to the repository's folder; ``*`` stands for any characters."""
    image: Path
    """The picture."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line, which has no options."""
    return Parser(__doc__).parse_args(argv)


def pictures() -> Iterator[Picture]:
    """Find the pictures of the page."""
    commands = ""
    for part in PART.finditer(PAGE.read_text(encoding="utf-8")):
        if part["commands"] is not None:
            commands = part["commands"]
        else:
            yield Picture(commands, part["file"], DOCS / part["image"])


def read(path: Path) -> Image.Image:
    """Read an image, or frames of a video side by side."""
    if path.suffix != ".mp4":
        return Image.open(path).convert("RGB")
    import av

    with av.open(str(path)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    places = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
    return Image.fromarray(np.concatenate([frames[place] for place in places], axis=1))


def main() -> None:
    """Make all pictures."""
    parse_args()
    root = DOCS.parent
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for picture in pictures():
        subprocess.run(
            ["bash", "-e", "-c", picture.commands],
            cwd=root,
            check=True,
            env={**os.environ, "PATH": path},
        )
        (found,) = root.glob(picture.file)
        image = read(found)
        zoom = min(MAX_WIDTH / image.width, max(1, MIN_WIDTH // image.width))
        image = image.resize((round(image.width * zoom), round(image.height * zoom)))
        image.save(picture.image, quality=85)
        print(f"wrote {picture.image}: {image.width} x {image.height}")


if __name__ == "__main__":
    main()
