#!/usr/bin/env python
"""Measure PQ of names with a few examples of each.

The examples are true masks of held-out scenes other than the tested ones. The kinds of rows:

    new          names of new shapes and textures, which no network here has seen and whose words
                 no text encoder here has read, so that only the memory can find them
    new, few     three of them are taught; "PQ taught" is theirs
    novel alone  the 27 novel names, as if their words were unread: the memory alone
    novel        the same with their words, which the text encoder has read
    misnamed     the 27 novel names under words that the text encoder has read, but never as names:
                 "above one", "below three"
    new, short   three new names are taught, and the vocabulary has only these, two base things and
                 two kinds of stuff: all else in the scenes has no name

"base" and "stuff" show what the memory breaks. Without examples, there is no memory.

Example:
    python projects/toy_world/measure_memory.py --out memory.json --plot memory.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample

from odise_mm.annotations.ground_truth import TruthSegment
from odise_mm.apis import OpenVocabInferencer
from odise_mm.benchmarks.tables import Table, show
from odise_mm.evaluation.panoptic_quality import PanopticCounts, match_segments, panoptic_quality
from odise_mm.models import RegionMemory
from odise_mm.models.segmentors.results import SegmentedImages, write_results
from odise_mm.utils.command_line import Parser, fraction, one_line_errors, positive_int
from odise_mm.utils.files import write_json
from odise_mm.vocabulary import Vocabulary
from projects.toy_world.names import (
    BASE_THINGS,
    NAMES,
    NEW_NAMES,
    NOVEL_THINGS,
    STUFFS,
    Name,
)
from projects.toy_world.world import Scene, scene

WEIGHTS = Path(__file__).parent / "weights/odise_label.safetensors"
ALL_NAMES = (*NAMES, *NEW_NAMES)
KINDS = ("new", "new, few", "novel alone", "novel", "misnamed", "new, short")
FEW = ("new, few", "new, short")
GROUPS = ("taught", "base", "stuff", "all")
NEW_SHARE = 0.4
"""Share of things and stuff that get a new name in the scenes of new names."""
_FEW = 3  # names taught
_SHORT = 2  # base things, and kinds of stuff, in a short vocabulary
POOL_SEED = 1
"""Seed of the scenes with examples; the tested scenes have seed 0, as on disk."""
_MISNOMERS = [
    f"{place} {count}"
    for place in ("above", "below", "near", "beside", "on", "in")
    for count in ("one", "two", "three", "four", "five")
]
Examples = dict[str, list[tuple[torch.Tensor, float, torch.Tensor]]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--scenes", type=positive_int, default=150, metavar="N", help="tested scenes"
    )
    parser.add_argument(
        "--pool", type=positive_int, default=300, metavar="N", help="scenes that examples are from"
    )
    parser.add_argument(
        "--shots",
        type=int,
        nargs="+",
        default=[0, 1, 2, 4, 8, 16],
        metavar="K",
        help="examples per name",
    )
    parser.add_argument("--draws", type=positive_int, default=5, metavar="N", help="random draws")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="weights of odise_toy_label")
    parser.add_argument("--memory-beta", type=fraction, help="weight of the memory, novel names")
    parser.add_argument("--threshold", type=float, help="threshold of MemoryClassifier")
    parser.add_argument("--margin", type=float, help="margin of MemoryClassifier")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file of the numbers")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="figure of the numbers")
    parser.add_argument(
        "--format",
        choices=("table", "markdown"),
        default="table",
        help="format of the printed table (default: %(default)s)",
    )
    return parser.parse_args(argv)


def alias(kind: str, name: Name) -> str:
    """Return what a name is called in a kind of rows."""
    if not name.is_novel or name in NEW_NAMES:
        return str(name)
    if kind == "novel alone":
        return f"zorb {name.category}"
    if kind == "misnamed":
        return _MISNOMERS[NOVEL_THINGS.index(name)]
    return str(name)


class Bench:
    """The toy model, and what its networks computed for scenes.

    Args:
        weights: of ``odise_toy_label``.
    """

    def __init__(self, weights: Path) -> None:
        self.inferencer = OpenVocabInferencer("odise_toy_label", weights, device="cpu")
        self.model = self.inferencer.model
        self.model.test_cfg |= dict(semantic=False, instance=False)
        self.inferencer.memory = RegionMemory()
        self.part = self.model.classifiers[-1]

    def inputs(self, drawn: Scene) -> tuple[torch.Tensor, list[DetDataSample]]:
        """Return a scene as the model's input."""
        image = torch.from_numpy(drawn.image.transpose(2, 0, 1)[::-1].copy())
        size = image.shape[1:]
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size))
        data = self.model.data_preprocessor(dict(inputs=[image], data_samples=[sample]))
        return data["inputs"], data["data_samples"]

    @torch.no_grad()
    def examples(self, count: int, new_share: float = 0.0) -> Examples:
        """Embed the regions of ``count`` scenes: by name, what a memory stores."""
        found: Examples = {}
        for number in range(count):
            drawn = scene((POOL_SEED, number), split="val", new_share=new_share)
            masks = np.stack([drawn.panoptic == segment.id for segment in drawn.segments])
            embedded = self.model.embed_regions(*self.inputs(drawn), torch.from_numpy(masks))
            for segment, one, ground, around in zip(
                drawn.segments,
                embedded.embeddings,
                embedded.backgrounds.tolist(),
                embedded.surroundings,
                strict=True,
            ):
                found.setdefault(str(segment.name), []).append((one, ground, around))
        return found

    @torch.no_grad()
    def segmented(
        self, count: int, names: Vocabulary, new_share: float = 0.0
    ) -> list[tuple[Scene, Any, SegmentedImages]]:
        """Run the networks on the tested scenes."""
        rows = []
        for number in range(count):
            drawn = scene((0, number), split="val", new_share=new_share)
            inputs, samples = self.inputs(drawn)
            (found,) = self.model.segment(inputs, samples, names)
            rows.append((drawn, samples, found))
        return rows

    @torch.no_grad()
    def quality(
        self,
        rows: Sequence[tuple[Scene, Any, SegmentedImages]],
        memory: RegionMemory,
        names: Sequence[Name],
    ) -> list[float | None]:
        """Compute PQ of each name with a memory; None for names that do not occur.

        Args:
            rows: of :meth:`segmented`.
            memory: examples.
            names: those of the vocabulary of ``rows``.
        """
        self.part.memory = memory
        total = PanopticCounts.zeros(len(ALL_NAMES))
        for drawn, samples, found in rows:
            before = found.class_predictions[-1]
            embeddings = before.embeddings
            near = memory.search(embeddings.flatten(0, 1), self.part.neighbors)
            vote = self.part.vote(near, found.vocabulary, embeddings)
            found = found._replace(class_predictions=[*found.class_predictions[:-1], vote])
            write_results(found, self.model.probabilities(found), samples, self.model.test_cfg)
            panoptic = samples[0].pred_panoptic_seg
            labels = {
                info["id"]: names[info["category_id"]].category - 1
                for info in panoptic.segments_info
            }
            ids = panoptic.sem_seg[0].numpy()
            total.add(match_segments(drawn.panoptic, truth_of(drawn), ids, labels, len(ALL_NAMES)))
        _, per_class = panoptic_quality(total, [name.is_thing for name in ALL_NAMES])
        return [None if one is None else one["PQ"] for one in per_class]


def truth_of(drawn: Scene) -> list[TruthSegment]:
    """Return the segments of a scene; the class index is that of ``ALL_NAMES``."""
    return [
        TruthSegment(segment.id, segment.name.category - 1, segment.name.is_thing, False)
        for segment in drawn.segments
    ]


def draw(
    examples: Examples, names: Sequence[Name], shots: int, seed: int
) -> Iterator[tuple[Name, torch.Tensor, float, torch.Tensor]]:
    """Draw examples of each name: all of them if there are fewer."""
    random = np.random.default_rng([seed, shots])
    for name in names:
        found = examples.get(str(name), [])
        for place in random.permutation(len(found))[:shots]:
            yield name, *found[place]


def remember(
    bench: Bench, rows: Sequence[tuple[Name, torch.Tensor, float, torch.Tensor]], kind: str
) -> RegionMemory:
    """Make a memory of examples, with the names of a kind of rows."""
    memory = RegionMemory(bench.inferencer.memory.embedder)
    if rows:
        names, embeddings, grounds, around = zip(*rows, strict=True)
        memory.add(
            torch.stack(embeddings),
            [alias(kind, name) for name in names],
            backgrounds=list(grounds),
            surroundings=torch.stack(around),
        )
    return memory


def names_for(kind: str, within: Sequence[Name]) -> Vocabulary:
    """Return class names under which a kind of rows is tested."""
    synonyms = tuple(
        name.synonyms if alias(kind, name) == str(name) else (alias(kind, name),) for name in within
    )
    return Vocabulary(synonyms, tuple(name.is_thing for name in within), kind)


def _some(names: Sequence[Name], count: int, seed: int) -> list[Name]:
    """Draw names."""
    order = np.random.default_rng([seed, 99]).permutation(len(names))
    return [names[place] for place in order[:count]]


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row per kind of words, number of examples and draw."""
    bench = Bench(args.weights)
    for part, name in ((bench.model.ensemble, "memory_beta"), (bench.part, "threshold")):
        if getattr(args, name) is not None:
            setattr(part, name, getattr(args, name))
    if args.margin is not None:
        bench.part.margin = args.margin
    rows: list[dict[str, Any]] = []
    pools: dict[float, Examples] = {}
    for kind in KINDS:
        new, few, short = kind.startswith("new"), kind in FEW, kind == "new, short"
        share = NEW_SHARE if new else 0.0
        names, members = (ALL_NAMES, NEW_NAMES) if new else (NAMES, NOVEL_THINGS)
        if share not in pools:
            pools[share] = bench.examples(args.pool, share)
        missing = [name for name in members if str(name) not in pools[share]]
        if missing:
            raise SystemExit(f"--pool {args.pool} has no examples of {len(missing)} names")
        tested: tuple[Vocabulary, list[tuple[Scene, Any, SegmentedImages]]] | None = None
        for seed in range(args.draws):
            taught = _some(members, _FEW, seed) if few else list(members)
            base, stuff, within = list(BASE_THINGS), list(STUFFS), list(names)
            if short:
                base, stuff = _some(base, _SHORT, seed), _some(stuff, _SHORT, seed)
                within = [*taught, *base, *stuff]
            vocabulary = names_for(kind, within)
            if tested is None or tested[0] != vocabulary:
                # Names must be taught before the text encoder leaves them to the memory.
                bench.part.memory = remember(bench, [*draw(pools[share], members, 1, 0)], kind)
                tested = vocabulary, bench.segmented(args.scenes, vocabulary, share)
            for shots in args.shots:
                if not shots and seed and not few:
                    continue  # all draws of no examples are the same
                memory = remember(bench, list(draw(pools[share], taught, shots, seed)), kind)
                values = bench.quality(tested[1], memory, within)
                rows.append(dict(kind=kind, shots=shots, draw=seed))
                for group, each in zip(GROUPS, (taught, base, stuff, within), strict=True):
                    found = [values[name.category - 1] for name in each]
                    rows[-1][group] = float(np.mean([v for v in found if v is not None]))
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int, str], tuple[float, float]]:
    """Return mean and standard deviation over draws by kind, number of examples and group."""
    found = {}
    for kind, shots in dict.fromkeys((row["kind"], row["shots"]) for row in rows):
        group = [row for row in rows if (row["kind"], row["shots"]) == (kind, shots)]
        for name in GROUPS:
            values = [row[name] for row in group]
            found[kind, shots, name] = float(np.mean(values)), float(np.std(values))
    return found


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """Return a line per kind and group, and a column per number of examples."""
    means = summary(rows)
    shots = sorted({row["shots"] for row in rows})
    cells = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for group in GROUPS:
            cells.append([kind, group])
            for count in shots:
                mean, spread = means[kind, count, group]
                cells[-1].append(f"{mean:.1f} ± {spread:.1f}" if count else f"{mean:.1f}")
    return Table(title, ["kind", "PQ of", *map(str, shots)], cells, [])


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw PQ against the number of examples, one panel per kind."""
    from matplotlib.figure import Figure

    means = summary(rows)
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    shots = sorted({row["shots"] for row in rows})
    columns = min(3, len(kinds))
    lines = -(-len(kinds) // columns)
    figure = Figure((3.3 * columns, 2.8 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    for axis in axes[len(kinds) :]:
        axis.remove()
    for axis, kind in zip(axes, kinds, strict=False):
        for group, label in (("taught", "names taught"), ("base", "base things")):
            values = [means[kind, count, group] for count in shots]
            mean, spread = zip(*values, strict=True)
            axis.errorbar(range(len(shots)), mean, spread, marker="o", capsize=3, label=label)
        axis.set_title(kind, fontsize=10)
        axis.set_xticks(range(len(shots)), [str(count) for count in shots])
        axis.set_xlabel("examples of each name")
        axis.grid(alpha=0.3)
    axes[0].set_ylim(bottom=0)  # the panels share the axis
    for axis in axes[::columns]:
        axis.set_ylabel("PQ")
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    with one_line_errors():
        rows = measure(args)
        if args.out is not None:
            write_json(args.out, dict(scenes=args.scenes, pool=args.pool, rows=rows), indent=1)
        if args.plot is not None:
            plot(rows, args.plot)
        title = f"PQ on {args.scenes} scenes, {args.draws} draws of examples, by examples per name"
        show([table(rows, title)], {}, args.format)
    return 0


if __name__ == "__main__":
    sys.exit(main())
