"""Argument types that the programs in this folder share."""

from __future__ import annotations

import argparse
from pathlib import Path

FORMATS = (".png", ".jpg")


def image_file(text: str) -> Path:
    """Parse a path that ends in .png or .jpg (argument type)."""
    path = Path(text)
    if path.suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f"must end in {' or '.join(FORMATS)}: {text}")
    return path
