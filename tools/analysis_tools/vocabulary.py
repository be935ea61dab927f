#!/usr/bin/env python
"""Examine class names before a model uses them.

Prints the pairs of classes whose names are most similar to CLIP, names that are longer than CLIP's
77 tokens, names that several classes have, and which classes are base classes (they share a name
with the training vocabulary) or novel. No image is read: only the CLIP of the config is loaded.

Examples:
    python tools/analysis_tools/vocabulary.py my_classes.txt
    python tools/analysis_tools/vocabulary.py ade20k --train-vocabulary coco --per-class
    python tools/analysis_tools/vocabulary.py --texts "sofa, couch; armchair" --stuff-texts "rug"
    python tools/analysis_tools/vocabulary.py --texts "red ball; red box" --config odise_toy_label
"""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout

from odise_mm.benchmarks.tables import FORMATS, show
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "vocabulary",
        nargs="?",
        metavar="VOCABULARY",
        help="file of class names, or a built-in vocabulary such as coco",
    )
    parser.add_argument("--texts", help="class names of things: ; separates classes, , synonyms")
    parser.add_argument("--stuff-texts", help="class names of stuff")
    parser.add_argument(
        "--config",
        default="odise_coco_label",
        metavar="CONFIG",
        help="config whose CLIP and prompt template are used (default: %(default)s)",
    )
    parser.add_argument("--clip-weights", metavar="FILE", help="file or open_clip tag of CLIP")
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help="prompt template, such as 'a photo of a {}.' (default: that of the config's first "
        "classifier)",
    )
    parser.add_argument(
        "--train-vocabulary",
        metavar="VOCABULARY",
        help="training vocabulary, which makes a class a base class (default: the config's)",
    )
    parser.add_argument(
        "--pairs",
        type=positive_int,
        default=20,
        metavar="N",
        help="number of similar pairs (default: %(default)s)",
    )
    parser.add_argument("--per-class", action="store_true", help="also print a row per class")
    parser.add_argument(
        "--format", choices=FORMATS, default="table", help="output format (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.vocabulary is None and args.texts is None and args.stuff_texts is None:
        parser.error("give VOCABULARY, --texts or --stuff-texts")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    with one_line_errors():
        with redirect_stdout(sys.stderr):  # the log must not mix with the numbers
            from odise_mm.analysis.vocabulary_report import examine, load_encoder, make_tables
            from odise_mm.vocabulary import Vocabulary

            parts = [] if args.vocabulary is None else [Vocabulary.load(args.vocabulary)]
            if args.texts is not None or args.stuff_texts is not None:
                parts.append(Vocabulary.parse(args.texts, args.stuff_texts))
            vocabulary = Vocabulary.join(parts)
            given = args.train_vocabulary and Vocabulary.load(args.train_vocabulary)
            encoder, template, trained = load_encoder(args.config, args.clip_weights)
            report = examine(
                encoder, vocabulary, args.template or template, given or trained, args.pairs
            )
        show(make_tables(report, args.per_class), report.to_dict(), args.format)
    return 0


if __name__ == "__main__":
    sys.exit(main())
