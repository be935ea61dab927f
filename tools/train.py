#!/usr/bin/env python
"""Train a model; the same as `odise-mm train`."""

import sys

from odise_mm.cli.train import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    sys.exit(main())
