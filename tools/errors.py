"""What a user did wrong ends a tool with one line, not with a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from odise_mm.apis.building import ConfigError, DeviceError
from odise_mm.utils.checkpoint import CheckpointError


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print errors of configs, devices, memory and weights files in one line; exit status 2."""
    try:
        yield
    except (ConfigError, DeviceError, CheckpointError) as error:
        message = str(error)
    except torch.OutOfMemoryError as error:
        message = (
            f"out of memory on the device ({str(error).split('. ')[0]}): lower the size, the "
            "tiles per batch (max_tiles_per_batch) or the precision (bf16)"
        )
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
