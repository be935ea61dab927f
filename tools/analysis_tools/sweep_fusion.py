#!/usr/bin/env python
"""Sweep the two exponents that join the model's opinion and CLIP's, from saved predictions.

Reads what tools/analysis_tools/save_predictions.py wrote for a test set. No model is built and none
is run: every value costs the joining, the results and the metrics, through the code that
tools/test.py runs. "Diffusion only" is alpha = beta = 0, "CLIP only" alpha = beta = 1.

Writes sweep.csv, sweep.md and a picture, sweep.png. All values are tried in one walk over the
images; mAP keeps about 60 kB per image and value until its end (5,000 images and 27 values: 8 GB;
--tasks panoptic semantic needs next to nothing).

Where the set's config names subsets of its classes, such as "base" and "novel", their numbers stand
beside those of all classes. To name some afterwards, save the predictions again with a config that
has them: no image is run again.

Examples:
    python tools/analysis_tools/sweep_fusion.py predictions/ade20k
    python tools/analysis_tools/sweep_fusion.py predictions/ade20k --alpha 0.2 0.3 --beta 0.6 0.7
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # runs from a clone that is not installed, too

from odise_mm.benchmarks.tables import FORMATS, Table, show, write_figure  # noqa: E402
from odise_mm.utils.command_line import Parser, one_line_errors  # noqa: E402
from odise_mm.utils.display import printable  # noqa: E402
from odise_mm.utils.files import atomic_writer, write_text  # noqa: E402
from odise_mm.utils.outputs import check_outputs  # noqa: E402

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.evaluator import Evaluator
    from torch import Tensor, nn

    from odise_mm.analysis.predictions import Prediction, PredictionFolder
    from odise_mm.vocabulary import Vocabulary

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
TASKS = ("panoptic", "semantic", "instance")
_EXPONENTS = ("alpha", "beta")
# Shown in the table and drawn, where the set has them; the CSV file has all numbers.
MAIN = {
    "PQ": ("panoptic/PQ",),
    "mAP": ("instance/AP", "lvis/AP"),
    "mIoU": ("semantic/mIoU",),
    "AR@100": ("proposals/AR@100",),
}


def exponent(text: str) -> float:
    """Argument type: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text}")
    return value


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="of one test set's saved predictions")
    text = "CLIP's exponents on classes {} in training (default: {})"
    grid = " ".join(map(str, GRID))
    for name, which in (("alpha", "seen"), ("beta", "not seen")):
        parser.add_argument(
            f"--{name}",
            nargs="+",
            type=exponent,
            default=list(GRID),
            metavar="X",
            help=text.format(which, grid),
        )
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all"
    )
    parser.add_argument("--out", metavar="DIR", help="for the files (default: FOLDER)")
    parser.add_argument(
        "--custom-imports",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="modules with parts of your own that the folder's config names; a file of results "
        "does not choose what runs",
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="default: %(default)s")
    return parser.parse_args(argv)


@dataclass
class Value:
    """A pair of exponents, and what comes of it.

    Attributes:
        label: what it is called: "both", "diffusion only", "CLIP only".
        own: whether these are the config's own.
        numbers: in percent, by the metrics' names; None where the set has nothing to measure.
    """

    alpha: float
    beta: float
    label: str = "both"
    own: bool = False
    numbers: dict[str, float | None] = field(default_factory=dict)


@dataclass
class Sweep:
    """A finished sweep.

    Attributes:
        name: of the test set.
        values: in the order of the table.
        notes: sentences for below the table.
        subsets: names of the subsets of classes that there are numbers of, too.
    """

    name: str
    values: list[Value]
    notes: list[str]
    subsets: tuple[str, ...] = ()

    def columns(self) -> dict[tuple[str, str], str]:
        """(heading, subset) -> key of the main numbers that there are; "" for all classes."""
        known = {k for value in self.values for k, n in value.numbers.items() if n is not None}
        found = {}
        for subset in ("", *self.subsets):
            for heading, keys in MAIN.items():
                for key in keys:
                    key = key.replace("/", f"/{subset}/") if subset else key
                    if key in known:
                        found[heading, subset] = key
        return found


def plan_values(alphas: list[float], betas: list[float], own: tuple[float, float]) -> list[Value]:
    """The two opinions alone, the config's own exponents, and the grid; none of them twice."""
    values = {
        (0.0, 0.0): Value(0.0, 0.0, "diffusion only"),
        (1.0, 1.0): Value(1.0, 1.0, "CLIP only"),
    }
    for pair in [own, *((a, b) for a in sorted(set(alphas)) for b in sorted(set(betas)))]:
        values.setdefault(pair, Value(*pair))
    values[own].own = True
    return list(values.values())


def sweep(
    path: str,
    alphas: list[float],
    betas: list[float],
    tasks: list[str],
    custom_imports: Sequence[str] = (),
) -> Sweep:
    """Try all values on the predictions in a folder.

    Args:
        path: of the folder.
        alphas, betas: to try.
        tasks: to measure.
        custom_imports: modules with parts of the user's own, which may be built.

    Raises:
        PredictionsError: the folder is incomplete, or has one opinion only.
        ConfigError: the fusion has no such exponents, none of the tasks is measured, or the folder
            names parts that are neither this package's nor of ``custom_imports``.
        DatasetError: the set's ground truth is missing.
    """
    import odise_mm  # noqa: F401  (first of ours: it prepares mmcv)
    from odise_mm.analysis.predictions import PredictionFolder, PredictionsError
    from odise_mm.checkpoints.training_names import noted
    from odise_mm.config.building import build_part, config_errors
    from odise_mm.engine.loops import tasks_of, vocabulary_of
    from odise_mm.registry import MODELS

    folder = PredictionFolder(path)
    described = folder.describe()
    cfg = read_config(folder, custom_imports)
    count = described["images"]
    missing = folder.missing(count)
    if missing:
        raise PredictionsError(
            f"{path} has {count - len(missing)} of {count} images (the first missing: number "
            f"{missing[0]}): give the command that saved them again, it goes on from there"
        )
    if len(described["opinions"]) != 2:
        raise PredictionsError(
            f"{path} holds the opinions of {', '.join(described['opinions'])}: joining needs two; "
            "save with a config that has both, such as ablation/classification/both"
        )
    fusion_cfg = cfg.model.fusion
    if fusion_cfg.get("train_vocabulary") is None:  # then the model's was the checkpoint's
        fusion_cfg = {**fusion_cfg, "train_vocabulary": noted(described)}
    with config_errors(cfg):
        default = build_part(fusion_cfg, MODELS)
        values = plan_values(alphas, betas, _exponents(default, fusion_cfg["type"]))
        fusions = [build_part({**fusion_cfg, "alpha": v.alpha, "beta": v.beta}, MODELS)
                   for v in values]  # fmt: skip
        dataset = build_dataset(cfg)
        evaluators = [build_evaluator(cfg, dataset, tasks) for _ in values]
    needed = tasks_of(evaluators[0])
    test_cfg = {**described["test_cfg"], **{task: task in needed for task in TASKS}}
    walk(folder, count, fusions, evaluators, vocabulary_of(dataset), test_cfg)
    for value, evaluator in zip(values, evaluators, strict=True):
        found = evaluator.evaluate(count)
        value.numbers = {k: float(v) if math.isfinite(v) else None for k, v in found.items()}
    subsets = tuple(dataset.metainfo.get("subsets", {}))
    result = Sweep(described["set"], values, _notes(described), subsets)
    if not result.columns():
        raise PredictionsError(f"{path}: the set has nothing that {', '.join(MAIN)} could measure")
    return result


def _exponents(fusion: nn.Module, kind: str) -> tuple[float, float]:
    if not (hasattr(fusion, "alpha") and hasattr(fusion, "beta")):
        raise ValueError(f"{kind} has no alpha and beta to sweep")
    return fusion.alpha, fusion.beta


def _notes(described: dict[str, Any]) -> list[str]:
    notes = [
        f"{described['images']} images of {described['set']}; model {described['config']}, "
        f"weights {(described['checkpoint'] or {}).get('file', 'made up')}, opinions of "
        f"{' and '.join(described['opinions'])}; mask logits stored as {described['masks']}.",
        "* the config's own exponents.",
    ]
    if described["limit"] is not None:
        notes.append("Limited to the first images of the set: these are no benchmark numbers.")
    if described["made_up_weights"]:
        notes.append("Made-up weights: these numbers mean nothing.")
    return notes


def read_config(folder: PredictionFolder, custom_imports: Sequence[str] = ()) -> Config:
    """The test's config, whose parts are those of this package and of ``custom_imports``.

    Raises:
        ConfigError: it names others; or a module of ``custom_imports`` cannot be imported.
    """
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    import odise_mm.models  # noqa: F401  (the fusion is one of them)
    from odise_mm.config.untrusted import check_imports, check_types
    from odise_mm.errors import ConfigError
    from odise_mm.evaluation.base import DatasetMetric
    from odise_mm.models import GeometricEnsemble
    from odise_mm.registry import DATASETS, METRICS, MODELS

    where = str(folder.path / "config.json")
    content = folder.config()
    for module in custom_imports:
        try:
            import_module(module)
        except ImportError as err:
            raise ConfigError(f"--custom-imports {module}: cannot be imported ({err})") from err
    check_imports(content.get("custom_imports"), custom_imports, where)
    try:
        fusion, dataset = content["model"]["fusion"], content["test_dataloader"]["dataset"]
        metrics = content["test_evaluator"]
    except (KeyError, TypeError) as err:
        raise ConfigError(f"{where}: not the config of a test ({err!r})") from err
    check_types(fusion, MODELS, f"{where}: model.fusion", custom_imports, GeometricEnsemble)
    check_types(without_pipelines(dataset), DATASETS, f"{where}: dataset", custom_imports)
    check_types(metrics, METRICS, f"{where}: test_evaluator", custom_imports, DatasetMetric)
    init_default_scope("odise_mm")
    return Config(content, filename=where)


def without_pipelines(dataset: Any) -> Any:
    """A dataset's config whose pictures are not to be opened."""
    from odise_mm.config.walking import inner_configs

    dataset = deepcopy(dataset)
    for _, each, wraps in inner_configs(dataset, ""):
        if not wraps:
            each["pipeline"] = []
    return dataset


def build_dataset(cfg: Config) -> Any:
    """The test set, for names and number of images: its pictures are not opened."""
    from odise_mm.datasets.seeding import build_seeded

    return build_seeded(without_pipelines(cfg.test_dataloader["dataset"]))


def build_evaluator(cfg: Config, dataset: Any, tasks: list[str]) -> Evaluator:
    """The set's metrics, those of the tasks."""
    from mmengine.evaluator import Evaluator

    metrics = cfg.test_evaluator
    evaluator = Evaluator(metrics if isinstance(metrics, list) else [metrics])
    kept = [metric for metric in evaluator.metrics if getattr(metric, "task", None) in tasks]
    if not kept:
        measured = {str(getattr(metric, "task", None)) for metric in evaluator.metrics}
        raise ValueError(f"the set is measured by {', '.join(measured)}, not by {' '.join(tasks)}")
    evaluator.metrics = kept
    for metric in kept:
        metric.ids_repeat = getattr(dataset, "ids_repeat", False)
    evaluator.dataset_meta = dataset.metainfo
    return evaluator


def walk(
    folder: PredictionFolder,
    count: int,
    fusions: list[nn.Module],
    evaluators: list[Evaluator],
    vocabulary: Vocabulary,
    test_cfg: dict[str, Any],
) -> None:
    """Show every evaluator what its fusion makes of every image."""
    import torch
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    images = track(
        range(count),
        f"{len(fusions)} values on {count} images",
        console=console,
        disable=not console.is_terminal,
    )
    with torch.no_grad():
        for index in images:
            prediction = folder.read(index)
            masks = resized_masks(prediction)
            made: list[tuple[Tensor, Any]] = []
            for fusion, evaluator in zip(fusions, evaluators, strict=True):
                scores = fusion(prediction.opinions, vocabulary)[0]
                # Where no class, or every class, was seen in training many values are the same.
                sample = next((s for known, s in made if torch.equal(known, scores)), None)
                if sample is None:
                    sample = make_results(prediction, masks, scores, vocabulary, test_cfg)
                    made.append((scores, sample))
                evaluator.process(data_samples=[sample], data_batch=None)


def resized_masks(prediction: Prediction) -> Tensor:
    """Mask logits at the size of the results, as the segmentor makes them."""
    from odise_mm.models.postprocess import resize_masks

    sizes = (prediction.metainfo[key][:2] for key in ("pad_shape", "img_shape", "ori_shape"))
    return resize_masks(prediction.masks, *sizes)


def make_results(
    prediction: Prediction,
    masks: Tensor,
    scores: Tensor,
    vocabulary: Vocabulary,
    test_cfg: dict[str, Any],
) -> Any:
    """A sample with the results of one image, as the segmentor makes it."""
    from mmdet.structures import DetDataSample

    from odise_mm.models.segmentors.results import add_results

    sample = DetDataSample(metainfo=prediction.metainfo)
    add_results(sample, masks, scores, vocabulary, test_cfg)
    return sample


def make_table(result: Sweep) -> Table:
    """The main numbers; the best of each column is marked."""
    columns = result.columns()
    title = f"{result.name}: exponents of the joined opinions, results in percent"
    headings = [f"{heading} {subset}".strip() for heading, subset in columns]
    table = Table(title, ["opinions", "alpha", "beta", *headings], notes=list(result.notes))
    best = {}
    for key in columns.values():
        numbers = {value.numbers[key] for value in result.values} - {None}
        best[key] = max(numbers) if len(numbers) > 1 else math.inf
    for value in result.values:
        row = [value.label + (" *" if value.own else ""), f"{value.alpha:g}", f"{value.beta:g}"]
        for key in columns.values():
            number = value.numbers[key]
            mark = " (best)" if number == best[key] else ""
            row.append("-" if number is None else f"{number:.2f}{mark}")
        table.rows.append(row)
    return table


def write_csv(result: Sweep, path: Path) -> None:
    """All numbers, unrounded."""
    keys = list(result.values[0].numbers)
    with atomic_writer(path, "w") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(("set", "opinions", "alpha", "beta", "config's own", *keys))
        for value in result.values:
            numbers = ["" if (n := value.numbers[key]) is None else repr(n) for key in keys]
            own = "yes" if value.own else "no"
            rows.writerow((result.name, value.label, value.alpha, value.beta, own, *numbers))


def draw(result: Sweep, path: Path) -> None:
    """A map of every main number over alpha and beta, in a row for all classes and each subset."""
    from matplotlib.figure import Figure

    columns = result.columns()
    headings, subsets = (list(dict.fromkeys(part)) for part in zip(*columns, strict=True))
    alphas, betas = ({getattr(value, name) for value in result.values} for name in _EXPONENTS)
    width = 1.5 + (1.2 + 0.62 * len(betas)) * len(headings)
    height = 0.5 + (1.1 + 0.45 * len(alphas)) * len(subsets)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(len(subsets), len(headings), squeeze=False)
    for axes_row, subset in zip(grid, subsets, strict=True):
        for axes, heading in zip(axes_row, headings, strict=True):
            if (heading, subset) in columns:
                _map(axes, f"{heading} {subset}".strip(), columns[heading, subset], result)
            else:
                axes.set_axis_off()
    warnings = [note for note in result.notes if "no benchmark" in note or "mean nothing" in note]
    title = f"{result.name}: CLIP's exponents; * the config's own"
    figure.suptitle("\n".join([title, *warnings]), fontsize=10)
    write_figure(path, figure, dpi=120)


def _map(axes: Any, title: str, key: str, result: Sweep) -> None:
    """One number over alpha and beta; pairs that were not tried, or have none, stay empty."""
    import numpy as np

    alphas, betas = (sorted({getattr(v, name) for v in result.values}) for name in _EXPONENTS)
    grid = np.full((len(alphas), len(betas)), np.nan)
    known = [value for value in result.values if value.numbers[key] is not None]
    for value in known:
        grid[alphas.index(value.alpha), betas.index(value.beta)] = value.numbers[key]
    drawn = axes.imshow(grid, origin="lower", aspect="auto", cmap="viridis")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for value in known:
        at = betas.index(value.beta), alphas.index(value.alpha)
        number = value.numbers[key]
        axes.text(
            *at,
            f"{number:.1f}" + ("*" if value.own else ""),
            ha="center",
            va="center",
            fontsize=8,
            color="black" if number > middle else "white",
        )
    axes.set(
        title=title, xlabel="beta (classes not seen)", ylabel="alpha (classes seen)",
        xticks=range(len(betas)), xticklabels=[f"{b:g}" for b in betas],
        yticks=range(len(alphas)), yticklabels=[f"{a:g}" for a in alphas],
    )  # fmt: skip
    axes.figure.colorbar(drawn, ax=axes)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with one_line_errors():
        out = Path(args.out or args.folder)
        inputs = [path for path in Path(args.folder).glob("*") if path.suffix in (".npz", ".json")]
        check_outputs([out / f"sweep.{kind}" for kind in ("csv", "md", "png")], inputs)
        with redirect_stdout(sys.stderr):  # the log must not mix with the numbers
            result = sweep(args.folder, args.alpha, args.beta, args.tasks, args.custom_imports)
        table = make_table(result)
        write_csv(result, out / "sweep.csv")
        write_text(out / "sweep.md", table.markdown() + "\n")
        draw(result, out / "sweep.png")
        numbers = [vars(value) for value in result.values]
        show([table], dict(set=result.name, values=numbers, notes=result.notes), args.format)
        if args.format == "table":
            print(f"wrote {printable(out)}/sweep.csv, sweep.md and sweep.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
