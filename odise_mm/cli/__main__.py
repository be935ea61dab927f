"""Entry point of ``python -m odise_mm.cli``, for launchers that start modules."""

import sys

from odise_mm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
