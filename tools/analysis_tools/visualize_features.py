#!/usr/bin/env python
"""k-means of backbones' feature maps as one image: what regions a representation tells apart.

As figure 1 of ODISE (arXiv 2303.04803), for any number of backbones side by side. The raw maps are
clustered, before the neck: nothing that is trained takes part but a captioner (--weights). Channels
are standardized over the image, reduced to 64 by PCA, and clustered from the same start every
time; a region has about the same color in all panels.

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
    parser = Parser(__doc__)
    parser.add_argument("image", metavar="IMAGE", help="an image")
    parser.add_argument(
        "configs", metavar="CONFIG", nargs="+", help="config files or their names under configs/"
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="FILE",
        help="trained checkpoints, one for each config, or `none`: of the captioner and of "
        "backbones that are trained (default: none; frozen weights are those of the config)",
    )
    parser.add_argument(
        "--out", metavar="FILE", default="features.png", help="default: %(default)s"
    )
    parser.add_argument(
        "--clusters", type=positive_int, default=6, metavar="K", help="default: %(default)s"
    )
    parser.add_argument(
        "--maps",
        nargs="+",
        type=int,
        metavar="I",
        help="numbers of the maps, counted from 0 in the order of the backbone (model_summary.py "
        f"lists them), several are joined; default: the last one of the stride nearest to {STRIDE}",
    )
    parser.add_argument(
        "--size", type=positive_int, help="short edge in pixels (default: what a config tests with)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    args = parser.parse_args(argv)
    if args.weights and len(args.weights) != len(args.configs):
        parser.error(f"--weights: {len(args.weights)} files for {len(args.configs)} configs")
    if Path(args.out).suffix != ".png":
        parser.error(f"--out must end in .png: {args.out}")
    return args


def run(args: argparse.Namespace) -> None:
    """Make the image."""
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
                size=args.size,
                device=args.device,
                precision=args.precision,
            )
            panels.append((title, alike(labels, panels[0][1]) if panels else labels))
    draw(image[..., ::-1], panels, Path(args.out))
    print(f"wrote {printable(args.out)}: {args.clusters} clusters of {len(panels)} backbones")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with one_line_errors():
        run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
