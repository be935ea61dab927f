#!/usr/bin/env python
"""Export a model to ONNX or torch.export; the same as `odise-mm export`."""

import sys

from odise_mm.cli.export import main, parse_args

__all__ = ["main", "parse_args"]

if __name__ == "__main__":
    sys.exit(main())
