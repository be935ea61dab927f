"""tools/analysis_tools/vocabulary.py on the names and the CLIP of the toy world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from odise_mm.analysis.vocabulary_report import examine, load_encoder, repeated_names
from odise_mm.models import TextEncoder
from odise_mm.vocabulary import Vocabulary
from tools.analysis_tools.vocabulary import main, parse_args

NAMES = Path(__file__).resolve().parents[2] / "projects/toy_world/vocabularies"


@pytest.fixture(scope="module")
def loaded() -> tuple[TextEncoder, str, Vocabulary]:
    return load_encoder("odise_toy_label")


def test_pairs_equal_a_search_over_all_names(loaded: tuple) -> None:
    encoder, template, trained = loaded
    vocabulary = Vocabulary.load(NAMES / "all.txt")
    report = examine(encoder, vocabulary, template, trained, top=10_000)
    best: dict[tuple[str, str], tuple[float, tuple[str, str]]] = {}
    embeddings = [
        F.normalize(encoder(list(group)).double(), dim=-1) for group in vocabulary.synonyms
    ]
    for i, one in enumerate(vocabulary.synonyms):
        for j, other in enumerate(vocabulary.synonyms[:i]):
            found = embeddings[j] @ embeddings[i].T
            row, column = divmod(int(found.argmax()), len(one))
            best[other[0], one[0]] = float(found.max()), (other[row], one[column])
    assert {pair.classes for pair in report.pairs} == best.keys()
    for pair in report.pairs:
        cosine, names = best[pair.classes]
        assert pair.cosine == pytest.approx(cosine, abs=1e-5)
        assert pair.names == names
    cosines = [pair.cosine for pair in report.pairs]
    assert cosines == sorted(cosines, reverse=True)
    for facts in report.classes:
        nearest = max(v[0] for pair, v in best.items() if facts.name in pair)
        assert facts.cosine == pytest.approx(nearest, abs=1e-5)
        pair = {facts.name, facts.nearest}
        assert max(v[0] for p, v in best.items() if set(p) == pair) == pytest.approx(nearest)
    novel = Vocabulary.load(NAMES / "novel.txt").names
    assert [facts.name for facts in report.classes if not facts.base] == list(novel)
    assert all(facts.trained_as == facts.name for facts in report.classes if facts.base)


def test_names_that_are_cut_or_repeated(
    loaded: tuple, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    encoder = loaded[0]
    longest = " ".join(["red"] * (encoder.clip.context_length - 2)) + " ball"
    file = tmp_path / "names.txt"  # only OpenSeg's format may repeat names
    file.write_text(f"0:red ball,{longest}\n1:blue box\n2:star,Blue  box\n3:blue box,ring\n")
    options = ["--config", "odise_toy_label", "--pairs", "2", "--per-class"]
    assert main([str(file), *options, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["context"] == encoder.clip.context_length - 2
    assert found["cut"] == {longest: found["context"] + 1}
    assert found["repeated"] == {"blue box": ["blue box", "star", "blue box"]}
    assert len(found["pairs"]) == 2
    assert all(pair["cosine"] == pytest.approx(1, abs=1e-5) for pair in found["pairs"])
    assert main([str(file), *options]) == 0
    shown = capsys.readouterr().out
    assert "Names in several classes" in shown and "Names cut at 30 tokens" in shown


def test_a_name_is_not_repeated_by_its_own_class() -> None:
    vocabulary = Vocabulary((("Cat", "cat"), ("dog",)), (True, True))
    assert repeated_names(vocabulary) == {}


def test_typed_names(capsys: pytest.CaptureFixture) -> None:
    options = ["--config", "odise_toy_label", "--train-vocabulary", "voc20"]
    assert main(["--texts", "red ball, crimson ball", "--stuff-texts", "sky", *options]) == 0
    shown = capsys.readouterr().out
    assert "Vocabulary texts" in shown and "Novel: red ball, sky." in shown
    assert main(["--texts", "red ball", *options, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (facts,) = found["classes"]
    assert found["pairs"] == [] and facts["nearest"] is None and facts["base"] is False
    with torch.inference_mode(), pytest.raises(SystemExit):
        main(["--texts", "zebra", *options])
    assert "zebra" in capsys.readouterr().err


def test_names_are_needed(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--config", "odise_toy_label"])
    assert "give VOCABULARY, --texts or --stuff-texts" in capsys.readouterr().err
