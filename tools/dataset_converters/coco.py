#!/usr/bin/env python
"""Prepare COCO 2017 panoptic: unpack the PNG files, check them, extract noun phrases."""

import sys

from odise_mm.converters.coco import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    sys.exit(main())
