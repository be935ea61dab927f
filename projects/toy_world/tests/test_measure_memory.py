"""The program that measures what examples are worth, with examples that teach nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from odise_mm.apis import OpenVocabInferencer
from odise_mm.evaluation.panoptic_quality import PanopticCounts, match_segments, panoptic_quality
from projects.toy_world import measure_memory
from projects.toy_world.measure_memory import ALL_NAMES, Bench, truth_of
from projects.toy_world.names import BASE_THINGS, NAMES, vocabulary
from projects.toy_world.world import scene

SCENES = 2


def examples(bench: Bench, count: int, new_share: float = 0.0) -> measure_memory.Examples:
    """Return a random embedding for each name, which resembles nothing."""
    generator = torch.Generator().manual_seed(0)
    drawn = scene((0, 0), split="val")
    region = torch.from_numpy(drawn.panoptic == 1)[None]
    width = bench.model.embed_regions(*bench.inputs(drawn), region).embeddings.shape[1]
    return {
        str(name): [(torch.randn(width, generator=generator), 0.3, torch.zeros(width))]
        for name in ALL_NAMES
    }


def test_without_a_memory_it_is_the_inferencers_quality(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bench, "examples", examples)
    out, figure = tmp_path / "memory.json", tmp_path / "memory.png"
    monkeypatch.setattr(measure_memory, "KINDS", ("new", "novel", "misnamed", "new, short"))
    assert measure_memory.main([
        *("--scenes", str(SCENES), "--draws", "1", "--shots", "0", "1"),
        *("--out", str(out), "--plot", str(figure)),
    ]) == 0  # fmt: skip
    assert figure.read_bytes()[:4] == b"\x89PNG"
    rows = json.loads(out.read_text())["rows"]
    assert [(row["kind"], row["shots"]) for row in rows] == [
        (kind, shots) for kind in measure_memory.KINDS for shots in (0, 1)
    ]
    assert rows[0]["taught"] == rows[6]["taught"] == 0  # no text encoder reads the new words
    rows = rows[2:]
    inferencer = OpenVocabInferencer("odise_toy_label", measure_memory.WEIGHTS, device="cpu")
    total = PanopticCounts.zeros(len(NAMES))
    for number in range(SCENES):
        drawn = scene((0, number), split="val")
        (result,) = inferencer(drawn.image, vocabulary=vocabulary(), channel_order="rgb")
        labels = {segment.id: segment.label for segment in result.segments}
        truth = truth_of(drawn)
        total.add(match_segments(drawn.panoptic, truth, result.panoptic, labels, len(NAMES)))
    numbers, per_class = panoptic_quality(total, [name.is_thing for name in NAMES])
    assert rows[0]["all"] == pytest.approx(numbers["PQ"])
    base = [per_class[name.category - 1] for name in BASE_THINGS]
    wanted = np.mean([one["PQ"] for one in base if one is not None])
    assert rows[0]["base"] == pytest.approx(wanted)
    assert rows[2]["taught"] < rows[0]["taught"] - 30  # the words of "misnamed" mean nothing
    # Examples that resemble nothing change nothing.
    assert rows[1]["all"] == pytest.approx(rows[0]["all"], abs=0.1)


def test_a_short_vocabulary_has_the_taught_names_and_four_others() -> None:
    taught = measure_memory._some(measure_memory.NEW_NAMES, 3, seed=1)
    names = measure_memory.names_for("new, short", [*taught, *BASE_THINGS[:2]])
    assert names.names == tuple(map(str, [*taught, *BASE_THINGS[:2]]))
    wrong = measure_memory.names_for("misnamed", NAMES)
    changed = [
        name.is_novel for name, text in zip(NAMES, wrong.names, strict=True) if text != str(name)
    ]
    assert changed == [True] * 27 and len(set(wrong.names)) == len(NAMES)
