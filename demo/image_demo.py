#!/usr/bin/env python
"""Segment images and name the segments; the same as `odise-mm segment`."""

import sys

from odise_mm.cli.segment import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    sys.exit(main())
