#!/usr/bin/env python
"""Draw k-means clusters of the feature maps of one or several backbones.

The figure shows which regions a representation separates, as figure 1 of ODISE (arXiv 2303.04803),
for any number of backbones side by side. The raw feature maps before the neck are clustered, so the
captioner is usually the only trained part involved (--weights). Channels are standardized over the
image and reduced to 64 by PCA. Results are deterministic, and a region has about the same color in
all panels.

Example:
    python tools/analysis_tools/visualize_features.py demo/images/pagoda.jpg \\
        ablation/representation/stable_diffusion ablation/representation/dino_b --out features.png
"""

from __future__ import annotations

import argparse
import sys
from itertools import chain
from pathlib import Path

from odise_mm.analysis.clustering import STRIDE, alike
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int
from odise_mm.utils.display import printable
from odise_mm.utils.outputs import check_outputs
from odise_mm.utils.precision import PRECISIONS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument(
        "configs", metavar="CONFIG", nargs="+", help="config files or their names under configs/"
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="FILE",
        help="a checkpoint or `none` for each config, with the trained weights of captioner and "
        "backbone (default: none; frozen weights always come from the config)",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="features.png",
        help="PNG file to write (default: %(default)s)",
    )
    parser.add_argument(
        "--clusters",
        type=positive_int,
        default=6,
        metavar="K",
        help="number of clusters (default: %(default)s)",
    )
    parser.add_argument(
        "--maps",
        nargs="+",
        type=int,
        metavar="I",
        help="indices of the feature maps, from 0 (model_summary.py lists them); several maps are "
        "concatenated (default: the last map with the stride nearest to --stride)",
    )
    parser.add_argument(
        "--stride",
        type=positive_int,
        default=STRIDE,
        metavar="S",
        help="stride of the maps. To compare backbones fairly, choose one that all of them have "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=positive_int,
        help="short edge of the resized image in pixels (default: the config's test size)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="precision of the frozen parts (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.weights and len(args.weights) != len(args.configs):
        parser.error(f"--weights: {len(args.weights)} files for {len(args.configs)} configs")
    if Path(args.out).suffix != ".png":
        parser.error(f"--out must end in .png: {args.out}")
    return args


def run(args: argparse.Namespace) -> None:
    """Compute the panels and write the figure."""
    from odise_mm.analysis.feature_panels import draw, panel, progress_bar
    from odise_mm.config.finding import load_config
    from odise_mm.config.walking import named_weights
    from odise_mm.utils.image import read_image

    cfgs = [load_config(config) for config in args.configs]
    named = [named_weights(cfg.get("model")) for cfg in cfgs]
    files = [args.image, *(args.weights or ()), *(cfg.filename for cfg in cfgs), *chain(*named)]
    check_outputs([args.out], files)
    image = read_image(args.image)
    weights = [None if w == "none" else w for w in args.weights or ["none"] * len(cfgs)]
    panels: list[tuple] = []
    with progress_bar() as bar:
        for config, cfg, file in zip(args.configs, cfgs, weights, strict=True):
            title, labels = panel(
                config,
                cfg,
                file,
                image,
                bar,
                clusters=args.clusters,
                maps=args.maps,
                stride=args.stride,
                size=args.size,
                device=args.device,
                precision=args.precision,
            )
            panels.append((title, alike(labels, panels[0][1]) if panels else labels))
    draw(image[..., ::-1], panels, Path(args.out))
    print(f"wrote {printable(args.out)}: {args.clusters} clusters of {len(panels)} backbones")


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    with one_line_errors():
        run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
