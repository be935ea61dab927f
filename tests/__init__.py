"""Tests. The package goes first: where mmcv has no compiled operators, it makes mmcv importable."""

import odise_mm  # noqa: F401
