#!/usr/bin/env python
"""Pascal VOC 2012 with 20 and with 21 classes: nothing is converted, the archive is checked."""

from odise_mm.converters.program import program
from odise_mm.converters.voc import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    with program():
        main()
