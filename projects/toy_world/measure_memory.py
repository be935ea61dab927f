#!/usr/bin/env python
"""Measure PQ of novel names with a few examples of each, with and without words.

The examples are true masks of held-out scenes other than the tested ones. The kinds of rows:

    words            all novel names are taught, and the text encoder has read them
    unread           the same, but they are called by words that no text encoder here has read, so
                     that only the memory can find them
    unread, few      three of them are taught; "PQ taught" is theirs
    unread and base  base names, which words find, have examples, too

"PQ base" shows what the memory breaks. Without examples, there is no memory.

Example:
    python projects/toy_world/measure_memory.py --scenes 200 --pool 600 --out memory.json
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
from projects.toy_world.names import BASE_THINGS, NAMES, NOVEL_THINGS, Name, vocabulary
from projects.toy_world.world import Scene, scene

WEIGHTS = Path(__file__).parent / "weights/odise_label.safetensors"
_FEW = 3  # names taught
POOL_SEED = 1
"""Seed of the scenes with examples; the tested scenes have seed 0, as on disk."""
Examples = dict[str, list[tuple[torch.Tensor, float]]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--scenes", type=positive_int, default=200, metavar="N", help="tested scenes"
    )
    parser.add_argument(
        "--pool", type=positive_int, default=600, metavar="N", help="scenes that examples are from"
    )
    parser.add_argument(
        "--shots",
        type=int,
        nargs="+",
        default=[0, 1, 2, 4, 8],
        metavar="K",
        help="examples per name",
    )
    parser.add_argument("--draws", type=positive_int, default=5, metavar="N", help="random draws")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="weights of odise_toy_label")
    parser.add_argument("--memory-beta", type=fraction, help="weight of the memory, novel names")
    parser.add_argument("--threshold", type=float, help="threshold of MemoryClassifier")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file of the numbers")
    return parser.parse_args(argv)


def unread(name: Name) -> str:
    """Return a name of words that no text encoder here has read."""
    return f"zorb {name.category}"


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
    def examples(self, count: int) -> Examples:
        """Embed the things of ``count`` scenes: by name, embedding and background."""
        found: Examples = {}
        for number in range(count):
            drawn = scene((POOL_SEED, number), split="val")
            things = [segment for segment in drawn.segments if segment.name.is_thing]
            masks = np.stack([drawn.panoptic == segment.id for segment in things])
            embedded = self.model.embed_regions(*self.inputs(drawn), torch.from_numpy(masks))
            for segment, one, ground in zip(
                things, embedded.embeddings, embedded.backgrounds.tolist(), strict=True
            ):
                found.setdefault(str(segment.name), []).append((one, ground))
        return found

    @torch.no_grad()
    def segmented(self, count: int, names: Vocabulary) -> list[tuple[Scene, Any, SegmentedImages]]:
        """Run the networks on the tested scenes."""
        rows = []
        for number in range(count):
            drawn = scene((0, number), split="val")
            inputs, samples = self.inputs(drawn)
            (found,) = self.model.segment(inputs, samples, names)
            rows.append((drawn, samples, found))
        return rows

    @torch.no_grad()
    def quality(
        self, rows: Sequence[tuple[Scene, Any, SegmentedImages]], memory: RegionMemory
    ) -> list[float | None]:
        """Compute PQ of each name with a memory; None for names that do not occur."""
        self.part.memory = memory
        total = PanopticCounts.zeros(len(NAMES))
        for drawn, samples, found in rows:
            before = found.class_predictions[-1]
            embeddings = before.embeddings
            near = memory.search(embeddings.flatten(0, 1), self.part.neighbors)
            vote = self.part.vote(near, found.vocabulary, embeddings)
            found = found._replace(class_predictions=[*found.class_predictions[:-1], vote])
            write_results(found, self.model.probabilities(found), samples, self.model.test_cfg)
            panoptic = samples[0].pred_panoptic_seg
            labels = {info["id"]: info["category_id"] for info in panoptic.segments_info}
            ids = panoptic.sem_seg[0].numpy()
            total.add(match_segments(drawn.panoptic, truth_of(drawn), ids, labels, len(NAMES)))
        _, per_class = panoptic_quality(total, [name.is_thing for name in NAMES])
        return [None if one is None else one["PQ"] for one in per_class]


def truth_of(drawn: Scene) -> list[TruthSegment]:
    """Return the segments of a scene; the class index is that of ``NAMES``."""
    return [
        TruthSegment(segment.id, segment.name.category - 1, segment.name.is_thing, False)
        for segment in drawn.segments
    ]


def draw(
    examples: Examples, names: Sequence[Name], shots: int, seed: int
) -> Iterator[tuple[str, torch.Tensor, float]]:
    """Draw examples of each name: all of them if there are fewer."""
    random = np.random.default_rng([seed, shots])
    for name in map(str, names):
        found = examples.get(name, [])
        for place in random.permutation(len(found))[:shots]:
            yield name, *found[place]


def remember(
    bench: Bench, rows: Sequence[tuple[str, torch.Tensor, float]], *, renamed: bool
) -> RegionMemory:
    """Make a memory of examples; ``renamed``: under the unread names."""
    memory = RegionMemory(bench.inferencer.memory.embedder)
    spelled = {str(name): unread(name) if renamed else str(name) for name in NAMES}
    if rows:
        names, embeddings, grounds = zip(*rows, strict=True)
        memory.add(
            torch.stack(embeddings), [spelled[name] for name in names], backgrounds=list(grounds)
        )
    return memory


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row per kind of words, number of examples and draw."""
    bench = Bench(args.weights)
    if args.memory_beta is not None:
        bench.model.ensemble.memory_beta = args.memory_beta
    if args.threshold is not None:
        bench.part.threshold = args.threshold
    examples = bench.examples(args.pool)
    missing = [name for name in NOVEL_THINGS if str(name) not in examples]
    if missing:
        raise SystemExit(f"--pool {args.pool} has no examples of {len(missing)} novel names")
    known = vocabulary()
    synonyms = tuple((unread(name),) if name.is_novel else name.synonyms for name in NAMES)
    names = {"words": known, "unread": Vocabulary(synonyms, known.is_thing, "unread")}
    rows = []
    for kind in ("words", "unread", "unread, few", "unread and base"):
        renamed = kind != "words"
        if kind in names:
            # Names must be taught before the text encoder leaves them to the memory.
            bench.part.memory = remember(
                bench, list(draw(examples, NOVEL_THINGS, 1, 0)), renamed=renamed
            )
            segmented = bench.segmented(args.scenes, names[kind])
        for shots in args.shots:
            for seed in range(args.draws if shots or kind == "unread, few" else 1):
                taught = list(NOVEL_THINGS)
                if kind == "unread, few":
                    order = np.random.default_rng([seed, 99]).permutation(len(taught))
                    taught = [taught[place] for place in order[:_FEW]]
                others = BASE_THINGS if kind == "unread and base" else ()
                shown = list(draw(examples, [*taught, *others], shots, seed))
                values = bench.quality(segmented, remember(bench, shown, renamed=renamed))
                groups = {"taught": taught, "base": BASE_THINGS, "all": NAMES}
                rows.append(dict(kind=kind, shots=shots, draw=seed))
                for group, members in groups.items():
                    found = [values[name.category - 1] for name in members]
                    rows[-1][group] = float(np.mean([v for v in found if v is not None]))
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = parse_args(argv)
    with one_line_errors():
        rows = measure(args)
        if args.out is not None:
            write_json(args.out, dict(scenes=args.scenes, pool=args.pool, rows=rows), indent=1)
        cells = []
        for kind, shots in dict.fromkeys((row["kind"], row["shots"]) for row in rows):
            group = [row for row in rows if (row["kind"], row["shots"]) == (kind, shots)]
            cells.append([kind, str(shots)])
            for name in ("taught", "base", "all"):
                values = [row[name] for row in group]
                spread = f" ± {np.std(values):.1f}" if len(values) > 1 else ""
                cells[-1].append(f"{np.mean(values):.1f}{spread}")
        title = f"PQ on {args.scenes} scenes, {args.draws} draws of examples"
        columns = ["kind", "examples", "PQ taught", "PQ base", "PQ"]
        show([Table(title, columns, cells, [])], {}, "table")
    return 0


if __name__ == "__main__":
    sys.exit(main())
