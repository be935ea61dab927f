#!/usr/bin/env python
"""Prepare Mapillary Vistas 1.2: panoptic annotations of the 65 evaluated classes."""

import sys

from odise_mm.converters.mapillary import main

if __name__ == "__main__":
    sys.exit(main())
