"""Names of configs: paths below the nearest ``configs`` folder."""

from __future__ import annotations

from pathlib import Path


def path_below_configs(config: Path) -> str:
    """Return the path below the nearest ``configs`` folder, without the suffix."""
    parts = config.with_suffix("").parts
    last = max((i for i, part in enumerate(parts) if part == "configs"), default=len(parts) - 2)
    return "/".join(parts[last + 1 :])
