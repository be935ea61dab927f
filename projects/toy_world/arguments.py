"""Types of arguments that programs here share."""

from __future__ import annotations

import argparse
from pathlib import Path

FORMATS = (".png", ".jpg")


def image_file(text: str) -> Path:
    """Argument type: a path that ends in .png or .jpg."""
    path = Path(text)
    if path.suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f"must end in {' or '.join(FORMATS)}: {text}")
    return path
