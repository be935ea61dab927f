#!/usr/bin/env python
"""Parameters, trained and frozen, feature maps and FLOPs of models, without weights or memory.

Models are built and run on torch's meta device. One config gets a table for every part, beside the
published model's where they compare; several get one table with a row for each.

Examples:
    python tools/analysis_tools/model_summary.py odise_coco_label
    python tools/analysis_tools/model_summary.py configs/ablation/*/*.py --format markdown
    python tools/analysis_tools/model_summary.py --all
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # runs from a clone that is not installed, too

from odise_mm.analysis import published  # noqa: E402
from odise_mm.benchmarks.tables import FORMATS, Table, show  # noqa: E402
from odise_mm.utils.command_line import Parser, one_line_errors, positive_int  # noqa: E402

if TYPE_CHECKING:
    from odise_mm.models import DiffusionBackbone, OpenVocabSegmentor


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "configs", metavar="CONFIG", nargs="*", help="config files or their names under configs/"
    )
    parser.add_argument("--all", action="store_true", help="every config of a model under configs/")
    parser.add_argument(
        "--size",
        type=positive_int,
        help="edge of the square image that FLOPs are counted for, in pixels (default: the short "
        "edge that the config tests with)",
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.all == bool(args.configs):
        parser.error("name configs, or take --all")
    return args


def all_configs() -> list[str]:
    """Every config of a model; of one name in the working directory and here, the one here."""
    from odise_mm.config.finding import config_folders

    found: dict[Path, Path] = {}
    for folder in config_folders():
        found |= {path.relative_to(folder): path for path in folder.rglob("*.py")}
    return [str(found[name]) for name in sorted(found) if "_base_" not in name.parts]


def count_parameters(model: OpenVocabSegmentor) -> tuple[dict[str, int], dict[str, int]]:
    """Trained and frozen parameters by part; one that several parts share counts once."""
    from odise_mm.analysis.parts import part_of
    from odise_mm.models.frozen import FrozenModule

    frozen_ids = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, FrozenModule)
        for parameter in module.parameters()
    }
    trained: Counter[str] = Counter()
    frozen: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts = frozen if id(parameter) in frozen_ids else trained
        counts[part_of(name)] += parameter.numel()
    return dict(trained), dict(frozen)


def count_not_built(backbone: DiffusionBackbone) -> dict[str, dict[str, int]]:
    """Parameters of the whole diffusion model that the backbone does without.

    Compares the complete models of diffusers and transformers, on the meta device, with what the
    backbone holds.

    Returns:
        By part, the parameters of every module that is missing as a whole, by its name.
    """
    import diffusers
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    arch = backbone.arch
    with torch.device("meta"):
        unet = UNet2DConditionModel(**arch.unet)
        vae = getattr(diffusers, arch.first_stage)(**arch.vae)
        kinds = ((CLIPTextModel, arch.text), (CLIPTextModelWithProjection, arch.text_2))
        texts = [kind(CLIPTextConfig(**config)) for kind, config in kinds if config]
    missing: dict[str, dict[str, int]] = {}
    for prefix, whole, kept in (("unet", unet, backbone.unet), ("vae", vae, backbone.vae)):
        held = {name for name, _ in kept.named_parameters()} if kept is not None else set()
        for module, count in _missing_modules(whole, held).items():
            part = "UNet" if prefix == "unet" else "VAE encoder"
            if prefix == "vae" and module.startswith(("decoder", "post_quant_conv", "quantize")):
                part = "VAE decoder"
            missing.setdefault(part, {})[module or "all"] = count
    for number, text in enumerate(texts, start=1):
        part = "diffusion text encoder" + (f" {number}" if len(texts) > 1 else "")
        missing[part] = {"all": sum(p.numel() for p in text.parameters())}
    return missing


def _missing_modules(whole: Any, held: set[str]) -> dict[str, int]:
    """Parameters that are not held, by the highest module that is missing entirely."""
    prefixes = {""} if held else set()
    for name in held:
        pieces = name.split(".")
        prefixes.update(".".join(pieces[:end]) for end in range(1, len(pieces)))
    missing: Counter[str] = Counter()
    for name, parameter in whole.named_parameters():
        if name in held:
            continue
        pieces = name.split(".")
        ancestors = (".".join(pieces[:end]) for end in range(len(pieces)))
        missing[next((a for a in ancestors if a not in prefixes), name)] += parameter.numel()
    return dict(missing)


def summarise(config: str, size: int | None = None) -> dict[str, Any]:
    """Everything that the tables show, as plain numbers.

    Args:
        config: file, or name under ``configs/``.
        size: edge of the image that FLOPs are counted for; None: what the config tests with.

    Returns:
        ``trained``, ``frozen`` (by part), ``taps``, ``size``, ``flops`` (of one image); where the
        config is the published architecture also ``variant``, ``published_trained``,
        ``published_frozen``; where the backbone is a diffusion model also ``not_built``.
    """
    from odise_mm.analysis.meta import build_on_meta, load_model_config, short_edge
    from odise_mm.models import DiffusionBackbone
    from tools.analysis_tools.benchmark import count_flops, make_vocabulary

    cfg = load_model_config(config)
    size = size or short_edge(cfg)
    is_published = published.is_published_architecture(cfg.model)
    model = build_on_meta(cfg)
    trained, frozen = count_parameters(model)
    summary: dict[str, Any] = {
        "config": config,
        "trained": trained,
        "frozen": frozen,
        "taps": list_taps(model.backbone),
        "size": size,
    }
    if isinstance(model.backbone, DiffusionBackbone):
        summary["not_built"] = count_not_built(model.backbone)
    if is_published:
        variant = "label" if model.classifiers[0].null_embedding is not None else "caption"
        numbers = published.PARAMETERS[variant]
        summary["variant"] = variant
        summary["published_trained"] = dict(numbers.trained)
        summary["published_frozen"] = dict(numbers.frozen)
        summary["fewer_positions"] = _positions_of_larger_image(model)
    model.vocabulary = make_vocabulary(None)
    summary["flops"] = sum(count_flops(model, size).values())
    return summary


def _positions_of_larger_image(model: OpenVocabSegmentor) -> int:
    """Parameters that CLIP's image tower has more than one for the paper's image size."""
    visual = model.clip.visual
    positions, width = visual.positional_embedding.shape
    fewer = (published.PAPER_CLIP_IMAGE_SIZE // visual.patch_size[0]) ** 2 + 1
    return (positions - fewer) * width


def list_taps(backbone: Any) -> list[dict[str, Any]]:
    """Where every feature map comes from, its channels and its stride."""
    from odise_mm.models import DiffusionBackbone

    described = backbone.describe()
    channels, strides = described["in_channels"], described["in_strides"]
    if isinstance(backbone, DiffusionBackbone):
        names = [
            f"input of {where.replace('_', ' ')}, block {block}"
            for where, blocks in backbone.taps._asdict().items()
            for block in blocks
        ]
    else:
        names = [f"map {index}" for index in range(len(channels))]
    return [
        {"tap": name, "channels": width, "stride": stride}
        for name, width, stride in zip(names, channels, strides, strict=True)
    ]


def make_tables(summary: dict[str, Any]) -> list[Table]:
    """The summary for people."""
    tables = [_counts(summary, "trained"), _counts(summary, "frozen")]
    if "not_built" in summary:
        tables.append(_not_built(summary))
    taps = Table("Feature maps of the backbone", ("where", "channels", "stride"))
    taps.rows = [(t["tap"], str(t["channels"]), str(t["stride"])) for t in summary["taps"]]
    size = summary["size"]
    taps.notes = [
        f"{summary['flops'] / 1e12:.3f} TFLOP for an image of {size} x {size} "
        f"({published.COUNTED_CLASSES} classes, {published.COUNTED_SYNONYMS} names, embedded "
        "before); by part: tools/analysis_tools/benchmark.py CONFIG --flops-only"
    ]
    return [*tables, taps]


def make_comparison(summaries: list[dict[str, Any]]) -> Table:
    """One row for every config."""
    columns = ("config", "trained", "frozen", "channels", "strides", "TFLOP per image")
    table = Table("Models", columns)
    for summary in summaries:
        maps = summary["taps"]
        table.rows.append(
            (
                _short_name(summary["config"]),
                f"{sum(summary['trained'].values()):,}",
                f"{sum(summary['frozen'].values()):,}",
                " ".join(str(m["channels"]) for m in maps),
                " ".join(str(m["stride"]) for m in maps),
                f"{summary['flops'] / 1e12:.3f} ({summary['size']})",
            )
        )
    table.notes = [
        "Parameters: what is in memory; shared ones count once. Strides in pixels.",
        "TFLOP: 10^12 operations, 2 per multiply-add, for a square image of the edge in brackets "
        f"and {published.COUNTED_CLASSES} classes ({published.COUNTED_SYNONYMS} names), embedded "
        "before.",
    ]
    return table


def _short_name(config: str) -> str:
    """What identifies a config: its path below ``configs/``."""
    parts = Path(config).with_suffix("").parts
    last = max((i for i, part in enumerate(parts) if part == "configs"), default=-1)
    return "/".join(parts[last + 1 :]) if last >= 0 else str(Path(config).with_suffix(""))


def _counts(summary: dict[str, Any], kind: str) -> Table:
    ours, theirs = summary[kind], summary.get(f"published_{kind}")
    table = Table(f"{kind.capitalize()} parameters", ["part", "ours"])
    parts = list(dict.fromkeys([*(theirs or {}), *ours]))
    if theirs is None:
        table.rows = [(part, f"{ours[part]:,}") for part in parts]
        table.rows += [(), ("total", f"{sum(ours.values()):,}")]
        return table
    table.columns += ["published", "difference"]
    rows = [(part, ours.get(part, 0), theirs.get(part, 0)) for part in parts]
    rows.append(("total", sum(ours.values()), sum(theirs.values())))
    table.rows = [(n, f"{a:,}", f"{b:,}", f"{a - b:+,}" if a != b else "0") for n, a, b in rows]
    table.rows.insert(-1, ())
    if kind == "trained":
        table.notes = [
            f"The paper rounds the published total to {published.PAPER_TRAINED_MILLIONS} M. The "
            "one logit scale is counted with the names here, in the head there."
        ]
    else:
        paper = sum(theirs.values()) - summary["fewer_positions"]
        table.notes = [
            "CLIP counts once; the published code holds three copies of it.",
            f"The paper states {published.PAPER_FROZEN_MILLIONS:,} M: this is {paper:,}, the total "
            f"without the {summary['fewer_positions']:,} parameters that CLIP's positions for 336 "
            f"pixels need more than those for {published.PAPER_CLIP_IMAGE_SIZE} (presumably).",
        ]
    return table


def _not_built(summary: dict[str, Any]) -> Table:
    missing = summary["not_built"]
    table = Table("Of the diffusion model, not in memory", ("part: module", "parameters"))
    for part, modules in missing.items():
        table.rows += [(f"{part}: {name}", f"{count:,}") for name, count in modules.items()]
    total = sum(sum(modules.values()) for modules in missing.values())
    table.rows += [(), ("total", f"{total:,}")]
    table.notes = ["The text encoder is run once, for the empty prompt, and then dropped."]
    if "published_frozen" in summary:
        ours, theirs = sum(summary["frozen"].values()), sum(summary["published_frozen"].values())
        rest = theirs - ours - total
        table.notes.append(
            f"{ours:,} frozen + {total:,} not in memory = {ours + total:,}; published: {theirs:,}; "
            f"unexplained: {rest:,}."
        )
    return table


def progress(configs: list[str]) -> Iterable[str]:
    """The configs, with a bar where there is somebody to look at it."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    quiet = len(configs) == 1 or not console.is_terminal
    return track(configs, "building models without memory", console=console, disable=quiet)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with one_line_errors():
        configs = all_configs() if args.all else args.configs
        with redirect_stdout(sys.stderr):  # the log must not mix with the numbers
            summaries = [summarise(config, args.size) for config in progress(configs)]
        if args.all or len(configs) > 1:
            show([make_comparison(summaries)], {"models": summaries}, args.format)
        else:
            show(make_tables(summaries[0]), summaries[0], args.format)
    return 0


if __name__ == "__main__":
    sys.exit(main())
