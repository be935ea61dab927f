#!/usr/bin/env python
"""Check Pascal VOC 2012 with 20 and 21 classes, whose annotations are used unchanged."""

from odise_mm.converters.program import program
from odise_mm.converters.voc import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    with program():
        main()
