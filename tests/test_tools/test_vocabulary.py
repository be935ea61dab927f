"""tools/analysis_tools/vocabulary.py: near names, cut names, seen and unseen classes."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from odise_mm.analysis.vocabulary_check import check_vocabulary, nearest_pairs
from odise_mm.models.clip.text_encoder import TextEncoder
from odise_mm.vocabulary import Vocabulary
from tests.support import parts
from tools.analysis_tools import vocabulary as tool

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("rows", [3, 1024])
def test_nearest_pairs_are_those_of_all_pairs(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odise_mm.analysis.vocabulary_check._ROWS_AT_A_TIME", rows)
    generator = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(20, 5, generator=generator), dim=-1)
    owners = [i // 2 for i in range(20)]
    names = [f"name {i}" for i in range(20)]
    best = {}
    for a, b in combinations(range(20), 2):
        if owners[a] != owners[b]:
            pair = (float(embeddings[a] @ embeddings[b]), names[a], names[b])
            key = (owners[a], owners[b])
            best[key] = max(best.get(key, pair), pair)
    wanted = sorted(best.values(), reverse=True)[:7]
    found = nearest_pairs(embeddings, owners, names, 7)
    assert [(p.first, p.second) for p in found] == [pair[1:] for pair in wanted]
    assert [p.similarity for p in found] == pytest.approx([pair[0] for pair in wanted])


def test_cut_names_and_unseen_classes() -> None:
    encoder = TextEncoder(parts.clip())
    long = "a very long name " * 20
    names = Vocabulary.parse(f"cat, kitten; {long}", "sky")
    check = check_vocabulary(names, encoder, train_vocabulary=Vocabulary.parse("kitten; dog"))
    ((cut, count),) = check.cut.items()
    assert cut == long.strip() and count > 75
    assert check.unseen == [long.strip(), "sky"]
    assert len(check.near) == 3


def test_the_program(capsys: pytest.CaptureFixture) -> None:
    names = ["--texts", "white box; white heart; red ball", "--config", "odise_toy_label"]
    assert tool.main([*names, "--format", "json", "--pairs", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["classes"] == found["things"] == 3 and len(found["near"]) == 2
    assert {found["near"][0]["first"], found["near"][0]["second"]} == {"white box", "white heart"}
    assert found["unseen"] == ["white box", "red ball"]  # novel in the toy world
    with pytest.raises(SystemExit):
        tool.main(["--config", "odise_toy_label"])
    assert "give NAMES, --texts or --stuff-texts" in capsys.readouterr().err
