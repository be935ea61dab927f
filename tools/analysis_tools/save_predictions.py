#!/usr/bin/env python
"""Run a model once over test sets and keep what its opinions on the masks are joined from.

The joining, which has two exponents, can then be tried with any of their values without running
the model: tools/analysis_tools/sweep_fusion.py. Every image is a file; a run that was stopped goes
on where it was when the same command is given again.

Size: mask logits take 2 bytes (fp16) per mask and 16 pixels, before packing: 4 MB for 100 masks
at 512 x 683 pixels, 18 MB at 1024 x 1365. The first image tells what all will take.

Examples:
    python tools/analysis_tools/save_predictions.py ablation/classification/both \\
        work_dirs/both/iter_92188.pth --datasets ade20k --out predictions
    python tools/analysis_tools/sweep_fusion.py predictions/ade20k
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # runs from a clone that is not installed, too

from odise_mm.utils.command_line import (  # noqa: E402
    INTERRUPTED,
    ConfigOptions,
    Parser,
    one_line_errors,
    positive_int,
)
from odise_mm.utils.display import printable  # noqa: E402
from odise_mm.utils.files import FolderLock  # noqa: E402
from odise_mm.utils.outputs import InputFiles, check_outputs  # noqa: E402
from odise_mm.utils.precision import PRECISIONS  # noqa: E402

if TYPE_CHECKING:
    from rich.progress import Progress

    from odise_mm.analysis.predictions import Prediction
    from odise_mm.benchmarks.sets import BenchmarkSet
    from odise_mm.engine.runner import OpenVocabRunner


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", help="config file or its name under configs/")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="as for tools/test.py")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="every test set gets a folder in it"
    )
    parser.add_argument(
        "--masks",
        choices=("fp16", "fp32"),
        default="fp16",
        help="how mask logits are stored (default: %(default)s, 3 decimal digits); opinions are "
        "always float32",
    )
    data = parser.add_argument_group("data, as for tools/test.py")
    data.add_argument("--datasets", nargs="+", metavar="NAME")
    data.add_argument("--data-root", metavar="DIR")
    data.add_argument("--label-files", metavar="DIR")
    data.add_argument("--limit", type=positive_int, metavar="N", help="the first N images only")
    how = parser.add_argument_group("how")
    how.add_argument("--precision", choices=PRECISIONS, default="fp32")
    how.add_argument("--work-dir", metavar="DIR", help="logs; default: work_dirs/CONFIG/test")
    how.add_argument("--cfg-options", action=ConfigOptions)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Save the predictions for all sets."""
    import torch
    from mmengine.device import get_device

    import odise_mm  # noqa: F401  (first of ours: it prepares mmcv)
    from odise_mm.benchmarks import planning, running
    from odise_mm.engine.runner import OpenVocabRunner
    from odise_mm.utils.precision import check_precision

    check_precision(args.precision, torch.device(get_device()))
    sets = planning.plan_sets(
        args.config,
        args.datasets,
        data_root=args.data_root,
        label_files=args.label_files,
        limit=args.limit,
        work_dir=args.work_dir,
        changes=args.cfg_options,
    )
    planning.check_checkpoint(args.checkpoint, sets[0].cfg)
    for test_set in sets:
        test_set.check()
    inputs = InputFiles(*planning.inputs_of(args.checkpoint, sets))
    for test_set in sets:
        folder = Path(args.out) / test_set.name
        check_outputs([folder / "set.json", folder / "config.json"], inputs)
    runner = OpenVocabRunner.from_cfg(sets[0].cfg)
    running.prepare_model(runner, args.checkpoint, args.precision)
    with running.progress_bar() as bar, FolderLock(args.out, "saving predictions"):
        for test_set in sets:
            print(printable(save_set(runner, test_set, args, bar)))


def save_set(
    runner: OpenVocabRunner, test_set: BenchmarkSet, args: argparse.Namespace, bar: Progress
) -> str:
    """Save those predictions of one set that are missing.

    Returns:
        What there is now, in a sentence.
    """
    from torch.utils.data import Subset

    from odise_mm.analysis.predictions import PredictionFolder
    from odise_mm.config.changing import complete_config
    from odise_mm.config.checking import check_config
    from odise_mm.engine.loops import bound_to, plain_worker_errors

    cfg = complete_config(test_set.cfg)
    check_config(cfg)
    loader = dict(cfg.test_dataloader)
    dataset = runner.build_dataloader(loader).dataset
    folder = PredictionFolder(Path(args.out) / test_set.name)
    folder.begin(describe(runner, test_set, args, dataset), cfg.to_dict())
    missing = folder.missing(len(dataset))
    task = bar.add_task(test_set.name, total=len(dataset), completed=len(dataset) - len(missing))
    if missing:
        rest = runner.build_dataloader({**loader, "dataset": Subset(dataset, missing)})
        model = runner.model.eval()
        places = iter(missing)
        sizes: list[int] = []
        with plain_worker_errors(), bound_to(model, dataset):
            for batch in rest:
                for prediction in _predict(model, batch):
                    sizes.append(folder.write(next(places), prediction, args.masks))
                    if len(sizes) == 1:
                        total = sizes[0] * len(missing)
                        check_space(folder.path, total)
                        text = f"{test_set.name} (about {total / 1e9:.2f} GB)"
                        bar.update(task, description=text)
                    bar.advance(task)
    used = sum(folder.file(index).stat().st_size for index in range(len(dataset)))
    return (
        f"{folder.path}: {len(dataset)} images, {used / 1e6:.1f} MB; "
        f"{len(missing)} of them were run now"
    )


def _predict(model: Any, batch: Any) -> list[Prediction]:
    import torch

    from odise_mm.analysis.predictions import predict_opinions
    from odise_mm.utils.memory import memory_guard

    seen = [sample.metainfo["img_shape"][:2] for sample in batch["data_samples"]]
    device = next(model.parameters()).device
    with torch.no_grad(), memory_guard(device, model.precision, seen):
        return predict_opinions(model, batch)


def describe(
    runner: OpenVocabRunner, test_set: BenchmarkSet, args: argparse.Namespace, dataset: Any
) -> dict[str, Any]:
    """What the predictions come from and depend on."""
    from odise_mm.benchmarks.report import describe_vocabulary
    from odise_mm.benchmarks.running import describe_run
    from odise_mm.checkpoints.training_names import note_of, train_vocabulary
    from odise_mm.engine.loops import unwrapped, vocabulary_of

    told = describe_run(runner, args.checkpoint, args.precision, args.cfg_options)
    model = unwrapped(runner.model)
    vocabulary, trained = vocabulary_of(dataset), train_vocabulary(model)
    return dict(
        set=test_set.name,
        images=len(dataset),
        limit=args.limit,
        config=told["config"]["file"],
        options=told["config"]["options"],
        model={k: v for k, v in told["config"]["model"].items() if k not in ("fusion", "test_cfg")},
        pipeline=told["config"]["test_pipeline"],
        dataset=_settings(test_set.dataset),
        checkpoint=told["checkpoint"],
        made_up_weights=args.checkpoint == "none",
        precision=args.precision,
        masks=args.masks,
        test_cfg=model.test_cfg,
        opinions=[type(classifier).__name__ for classifier in model.classifiers],
        vocabulary=describe_vocabulary(vocabulary, vocabulary.name),
        train_vocabulary=None if trained is None else note_of(trained),
        started=told["started"],
        versions=told["versions"],
    )


def _settings(dataset: Any) -> Any:
    """A data set's config, without what does not change what is predicted for an image."""
    if isinstance(dataset, (list, tuple)):
        return [_settings(each) for each in dataset]
    if not isinstance(dataset, dict):
        return dataset
    if dataset.get("type") == "FirstImages":
        return _settings(dataset["dataset"])
    left_out = ("indices", "subsets")
    return {k: _settings(value) for k, value in dataset.items() if k not in left_out}


def check_space(folder: Path, wanted: int) -> None:
    """Refuse to begin what cannot be finished.

    Raises:
        PredictionsError: the disk has less room than that.
    """
    from odise_mm.analysis.predictions import PredictionsError

    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise PredictionsError(
            f"{folder} would take about {wanted / 1e9:.1f} GB and its disk has {free / 1e9:.1f} "
            "GB left: make room, take another --out, or fewer images (--limit)"
        )


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    os.environ.setdefault("LOCAL_RANK", "0")
    with one_line_errors():
        try:
            run(args)
        except KeyboardInterrupt:
            print("interrupted: the same command goes on from here", file=sys.stderr)
            return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
