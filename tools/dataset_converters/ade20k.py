#!/usr/bin/env python
"""Prepare ADE20K with 150 classes: panoptic and instance annotations in COCO's format."""

from odise_mm.converters.ade20k import main, parse_args
from odise_mm.converters.program import program

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    with program():
        main()
