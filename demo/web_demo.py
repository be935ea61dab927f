#!/usr/bin/env python
"""Segment images on a web page; the same as `odise-mm serve`."""

import sys

from odise_mm.cli.serve import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    sys.exit(main())
