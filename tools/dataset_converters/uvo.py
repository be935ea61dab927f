#!/usr/bin/env python
"""Prepare UVO: class-agnostic instance annotations of frames."""

import sys

from odise_mm.converters.uvo import main

if __name__ == "__main__":
    sys.exit(main())
