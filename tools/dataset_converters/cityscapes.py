#!/usr/bin/env python
"""Prepare Cityscapes: panoptic, instance and semantic annotations of the 19 evaluated classes."""

import sys

from odise_mm.converters.cityscapes import main

if __name__ == "__main__":
    sys.exit(main())
