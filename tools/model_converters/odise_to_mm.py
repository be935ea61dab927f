#!/usr/bin/env python
"""Convert a published checkpoint to this package's format.

Files of ODISE, FC-CLIP, OVRCOAT, MAFT+ and MaskCLIP++ can be converted. The result contains the
trained parameters, and the CLIP if the published file contains it. Conversion is optional, as all
tools also read the published files directly. Without --config, only the keys are checked: all must
be known, and no kind of parameter may be missing. With --config, the result must also match the
keys and shapes of the config's model.

Example:
    python tools/model_converters/odise_to_mm.py odise_label_coco_50e-b67d2efc.pth label.safetensors
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from odise_mm.utils.command_line import Parser, one_line_errors
from odise_mm.utils.display import printable

if TYPE_CHECKING:
    from torch import Tensor

    from odise_mm.benchmarks.tables import Table


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument("input", metavar="IN", help="published file, e.g. odise_label_coco_50e.pth")
    parser.add_argument("output", metavar="OUT", help="file to write, .safetensors or .pth")
    parser.add_argument("--config", help="config whose model the result must match")
    return parser.parse_args(argv)


def convert(source: str | Path) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Read a published file.

    Args:
        source: The file.

    Returns:
        The parameters under this package's names, the unused keys with the reason for each, and
        the name of the method.

    Raises:
        CheckpointError: The file is not a published checkpoint, has an unknown key, or lacks
            parameters.
    """
    from odise_mm.checkpoints.published import from_published, known_names, published_method
    from odise_mm.checkpoints.safe_loading import load_state_dict
    from odise_mm.errors import CheckpointError

    state = load_state_dict(source, fits=known_names())
    method = published_method(state)
    if method is None:
        first = next(iter(state), "no key")
        if first.startswith(("captioner.", "neck.", "head.", "classifiers.")):
            raise CheckpointError(
                f"{source} is already a checkpoint of this package; there is nothing to convert"
            )
        raise CheckpointError(
            f"{source} is not a published checkpoint of ODISE, FC-CLIP, OVRCOAT, MAFT+ or "
            f"MaskCLIP++: it has no keys sem_seg_head.* or psm.* (first key: {first})"
        )
    ours, unused = from_published(state)
    if len(ours) + len(unused) != len(state):
        raise CheckpointError(f"{source}: two of its keys map to the same parameter")
    absent = _absent(state)
    if absent:
        raise CheckpointError(
            f"{source} is incomplete: no key matches {absent[0]}"
            + (f" or {len(absent) - 1} other patterns" if len(absent) > 1 else "")
        )
    return ours, unused, method.names.method


def _absent(state: Mapping[str, Tensor]) -> list[str]:
    """List the patterns of published names that must match a key but don't."""
    import re

    from odise_mm.checkpoints.published import published_method

    method = published_method(state)
    assert method is not None, "checked by convert"
    # Label supervision has null_embed and not class_embed, caption supervision the opposite.
    captions = any(key.startswith("word_head.") for key in state)
    other = "null_embed" if captions else "head.cls_embed."
    return [
        pattern
        for pattern, name in method.rules
        if other not in pattern + name and not any(re.match(pattern, key) for key in state)
    ]


def check_against_config(ours: Mapping[str, Tensor], config: str, source: str | Path) -> None:
    """Compare keys and shapes with a config's model, which is built on the meta device.

    Args:
        ours: Parameters under this package's names.
        config: Config file, or its name under ``configs/``.
        source: The published file, for messages.

    Raises:
        CheckpointError: Keys or shapes differ. The message names the first differences.
    """
    from odise_mm.analysis.meta import build_on_meta, load_model_config
    from odise_mm.checkpoints.published import expected_tensors
    from odise_mm.errors import CheckpointError

    model = build_on_meta(load_model_config(config))
    expected = expected_tensors(model, ours)
    wanted = {key: tuple(value.shape) for key, value in expected.items()}
    found = {key: tuple(value.shape) for key, value in ours.items()}
    differences = [f"{key} is missing" for key in wanted if key not in found]
    differences += [f"{key} is not in the model" for key in found if key not in wanted]
    differences += [
        f"{key} is {found[key]} instead of {wanted[key]}"
        for key in wanted
        if key in found and found[key] != wanted[key]
    ]
    if differences:
        raise CheckpointError(
            f"{source} does not fit {config}: {len(differences)} differences, first: "
            f"{'; '.join(differences[:3])}"
        )


def make_tables(ours: Mapping[str, Tensor], unused: Mapping[str, str]) -> list[Table]:
    """Make a table of the converted parameters by part, and a table of the unused keys.

    Args:
        ours: Parameters under this package's names.
        unused: Unused keys and the reason for each.
    """
    from odise_mm.analysis.parts import part_of
    from odise_mm.benchmarks.tables import Table

    keys, numbers = Counter(), Counter()
    for key, value in ours.items():
        keys[part_of(key)] += 1
        numbers[part_of(key)] += value.numel()
    converted = Table("Converted", ("part", "keys", "parameters"))
    converted.rows = [(part, f"{keys[part]:,}", f"{numbers[part]:,}") for part in keys]
    converted.rows += [(), ("total", f"{keys.total():,}", f"{numbers.total():,}")]
    left_out = Table("Not used", ("key", "reason"))
    left_out.rows = list(unused.items()) or [("none", "")]
    return [converted, left_out]


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    from odise_mm.benchmarks.tables import show
    from odise_mm.checkpoints.safe_loading import save_state_dict
    from odise_mm.utils.outputs import check_outputs

    with one_line_errors():
        check_outputs([args.output], [args.input, args.config])
        ours, unused, method = convert(args.input)
        if args.config:
            check_against_config(ours, args.config, args.input)
        meta = {
            "format": "odise_mm trained parameters",
            "converted_from": Path(args.input).name,
            "method": method,
        }
        save_state_dict(args.output, ours, meta)
        show(make_tables(ours, unused), {}, "table")
        size = Path(args.output).stat().st_size / 1e6
        print(f"Written: {printable(args.output)} ({size:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
