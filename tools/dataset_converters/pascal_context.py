#!/usr/bin/env python
"""Prepare Pascal Context with 59 and 459 classes: semantic label maps."""

from odise_mm.converters.pascal_context import main, parse_args
from odise_mm.converters.program import program

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    with program():
        main()
