#!/usr/bin/env python
"""Test a model on one or several test sets; the same as `odise-mm test`."""

import sys

from odise_mm.cli.test import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    sys.exit(main())
