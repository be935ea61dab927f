#!/usr/bin/env python
"""Check class names before a run.

The tables list the pairs of classes whose names CLIP can hardly tell apart, names that are too long
for CLIP, and classes that were not seen in training. Pairs with a high cosine compete for the same
regions: make them one class, or choose names that differ more.

Examples:
    python tools/analysis_tools/vocabulary.py names.txt --config odise_coco_label
    python tools/analysis_tools/vocabulary.py --texts "cup; mug; glass" --config odise_coco_label
"""

from __future__ import annotations

import argparse
import sys

from odise_mm.benchmarks.tables import FORMATS, show
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "vocabulary", nargs="?", metavar="NAMES", help="file or built-in vocabulary (coco, ...)"
    )
    parser.add_argument("--texts", help="names of things, as in `odise-mm segment`")
    parser.add_argument("--stuff-texts", help="names of stuff")
    parser.add_argument(
        "--config",
        default="odise_coco_label",
        metavar="CONFIG",
        help="config whose CLIP embeds the names (default: %(default)s)",
    )
    parser.add_argument("--clip-weights", help="file or open_clip tag of CLIP")
    parser.add_argument(
        "--template",
        default="a photo of a {}.",
        help="prompt template, or `vild` for the mean of 14 templates (default: %(default)s)",
    )
    parser.add_argument(
        "--pairs",
        type=positive_int,
        default=20,
        metavar="N",
        help="number of nearest pairs (default: %(default)s)",
    )
    parser.add_argument(
        "--train-vocabulary",
        metavar="NAMES",
        help="vocabulary of the training data (default: that of the config)",
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="table", help="output format (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.vocabulary is None and args.texts is None and args.stuff_texts is None:
        parser.error("give NAMES, --texts or --stuff-texts")
    return args


def main(argv: list[str] | None = None) -> int:
    """Check the names."""
    args = parse_args(argv)
    with one_line_errors():
        # Imported after parsing the arguments, so that --help is fast.
        import odise_mm.models  # noqa: F401  # registers the text encoder
        from odise_mm.analysis.vocabulary_check import build_encoder, check_vocabulary
        from odise_mm.config.changing import set_frozen_weights
        from odise_mm.config.finding import load_config
        from odise_mm.vocabulary import Vocabulary

        parts = []
        if args.texts is not None or args.stuff_texts is not None:
            parts.append(Vocabulary.parse(args.texts, args.stuff_texts))
        if args.vocabulary is not None:
            parts.append(Vocabulary.load(args.vocabulary))
        cfg = load_config(args.config)
        if args.clip_weights is not None:
            set_frozen_weights(cfg, "clip", args.clip_weights)
        trained = args.train_vocabulary or _trained_names(cfg)
        check = check_vocabulary(
            Vocabulary.join(parts),
            build_encoder(cfg),
            args.template,
            args.pairs,
            None if trained is None else Vocabulary.load(trained),
        )
        show(check.tables(), check.to_dict(), args.format)
    return 0


def _trained_names(cfg) -> str | None:
    """Return the vocabulary that the config's model was trained on, if it is named."""
    configured = (cfg.model.get("ensemble") or {}).get("train_vocabulary")
    return configured or cfg.model.get("vocabulary")


if __name__ == "__main__":
    sys.exit(main())
