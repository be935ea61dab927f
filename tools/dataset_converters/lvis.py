#!/usr/bin/env python
"""Check LVIS v1, whose annotations are used unchanged with COCO's images."""

import sys

from odise_mm.converters.lvis import file_name, main

__all__ = ["file_name", "main"]

if __name__ == "__main__":
    sys.exit(main())
