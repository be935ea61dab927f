"""Entry point of ``python -m odise_mm``, which is the command ``odise-mm``."""

import sys

from odise_mm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
