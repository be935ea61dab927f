"""Arguments that several subcommands share: class names, the model, settings of results."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from odise_mm.utils.command_line import ConfigOptions, fraction, positive_int, whole_number
from odise_mm.utils.precision import PRECISIONS

if TYPE_CHECKING:
    from odise_mm.apis import OpenVocabInferencer

SETTINGS = ("score_threshold", "overlap_threshold", "min_area", "alpha", "beta", "memory_weight")
"""Settings of results, which are arguments of a call of the inferencer."""
NO_CONFIG = (
    "--config is missing. Use odise_coco_label (its weights are downloaded on first use), another "
    "config that `odise-mm info` lists together with --weights, or odise_tiny (random weights and "
    "meaningless results, but no downloads)"
)


def add_names(parser: argparse.ArgumentParser) -> None:
    """Add the arguments with class names."""
    names = parser.add_argument_group("class names")
    names.add_argument(
        "--texts",
        help="names of things; ';' separates classes and ',' separates synonyms. Names of "
        "vocabularies (coco, ade20k, lvis, ...) and files (.txt, .csv, .yaml, .json) work as well",
    )
    names.add_argument("--stuff-texts", help="names of stuff (sky, grass, ...), in the same format")
    names.add_argument(
        "--vocabulary", help="names or files of vocabularies, in addition to --texts"
    )


def add_model(
    parser: argparse.ArgumentParser, max_pixels: int | None = None, results: bool = True
) -> argparse._ArgumentGroup:
    """Add the arguments that choose the model and the settings of results; return their group.

    Args:
        parser: Parser of the subcommand.
        max_pixels: Default of ``--max-pixels``. None: that of the inferencer.
        results: Whether to add the settings of results and ``--memory``, too.
    """
    model = parser.add_argument_group("model")
    model.add_argument(
        "--config",
        metavar="CONFIG",
        help="config file or its name under configs/, such as odise_coco_label",
    )
    model.add_argument(
        "--weights",
        help="checkpoint of this package or published checkpoint (default: the published "
        "one of the config, which is downloaded on first use)",
    )
    model.add_argument(
        "--diffusion-weights",
        help="folder, file or hub id of the diffusion model (default: as in the config)",
    )
    model.add_argument(
        "--clip-weights", help="file or open_clip tag of CLIP (default: as in the config)"
    )
    model.add_argument("--device", help="cuda, cuda:1, cpu, ... (default: a GPU if there is one)")
    model.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="precision of the model (default: %(default)s)",
    )
    model.add_argument(
        "--max-pixels",
        type=positive_int,
        default=max_pixels,
        metavar="N",
        help="reject images with more pixels (default: "
        + ("67,108,864, which is 8192 x 8192)" if max_pixels is None else f"{max_pixels:,})"),
    )
    if results:
        _add_results(model)
    model.add_argument(
        "--cfg-options",
        action=ConfigOptions,
        help="further changes of the config, e.g. model.test_cfg.overlap_threshold=0.7",
    )
    return model


def add_batches(model: argparse._ArgumentGroup) -> None:
    """Add the options of what is processed at a time: images together, windows of images."""
    model.add_argument(
        "--batch-size",
        type=positive_int,
        default=1,
        metavar="N",
        help="number of images that run together (default: %(default)s)",
    )
    model.add_argument(
        "--window",
        type=positive_int,
        metavar="N",
        help="cut larger images into windows of N x N pixels and join the results (default: never)",
    )
    model.add_argument(
        "--overlap",
        type=positive_int,
        metavar="N",
        help="pixels by which windows overlap at least (default: a quarter of --window)",
    )


def _add_results(model: argparse._ArgumentGroup) -> None:
    """Add the arguments that change results."""
    model.add_argument(
        "--memory",
        metavar="FILE",
        help="examples of classes, written by `odise-mm teach` with the same model; their names "
        "count if they are among the class names",
    )
    model.add_argument(
        "--score-threshold",
        type=fraction,
        metavar="P",
        help="drop segments whose class probability is not above this (default: as in the config)",
    )
    model.add_argument(
        "--overlap-threshold",
        type=fraction,
        metavar="P",
        help="drop masks that keep less than this part of their area (default: as in the config)",
    )
    model.add_argument(
        "--min-area",
        type=whole_number,
        metavar="N",
        help="drop segments with fewer pixels (default: as in the config)",
    )
    model.add_argument(
        "--alpha",
        type=fraction,
        metavar="W",
        help="weight of CLIP's prediction for base classes (default: as in the config)",
    )
    model.add_argument(
        "--beta",
        type=fraction,
        metavar="W",
        help="weight of CLIP's prediction for novel classes (default: as in the config)",
    )
    model.add_argument(
        "--memory-weight",
        type=fraction,
        metavar="W",
        help="factor on the weights of the memory's prediction: 0 leaves it out (default: 1)",
    )


def given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return the arguments out of ``names`` that were given."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def build_inferencer(args: argparse.Namespace) -> OpenVocabInferencer:
    """Build the inferencer that the arguments describe."""
    from odise_mm.apis import OpenVocabInferencer
    from odise_mm.errors import ConfigError

    limit = {} if args.max_pixels is None else dict(max_pixels=args.max_pixels)
    inferencer = OpenVocabInferencer(
        args.config,
        args.weights,
        args.device,
        args.precision,
        diffusion_weights=args.diffusion_weights,
        clip_weights=args.clip_weights,
        memory=getattr(args, "memory", None),
        **limit,
        cfg_options={
            # Only the panoptic result is shown, so the others are not computed.
            "model.test_cfg.semantic": False,
            "model.test_cfg.instance": False,
            **args.cfg_options,
        },
    )
    if not inferencer.model.test_cfg.get("panoptic", True):
        raise ConfigError("model.test_cfg.panoptic=False: this command shows the panoptic result")
    return inferencer
