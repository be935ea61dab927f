#!/usr/bin/env python
"""Check LVIS v1: its annotations are used as they are, with COCO's images. See --help."""

import sys

from odise_mm.converters.lvis import file_name, main

__all__ = ["file_name", "main"]

if __name__ == "__main__":
    sys.exit(main())
