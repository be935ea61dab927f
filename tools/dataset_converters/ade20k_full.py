#!/usr/bin/env python
"""Prepare ADE20K with 847 classes: semantic label maps of the full release (ADE20K_2021_17_01)."""

from odise_mm.converters.ade20k_full import main, parse_args
from odise_mm.converters.program import program

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    with program():
        main()
