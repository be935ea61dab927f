"""Cost of class names: counted rows, and the program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from odise_mm.analysis.names_cost import measure_names, other_orders
from odise_mm.config.building import build_model
from odise_mm.vocabulary import Vocabulary
from tests.support import golden_families
from tests.support.parts import segmentor
from tools.analysis_tools import benchmark_names as tool

VOCABULARY = Vocabulary(
    (("cat", "kitten"), ("wall",), ("sky",)), (True, False, False), source_names=("c", "w", "s")
)


def test_other_orders_are_the_same_classes() -> None:
    orders = other_orders(VOCABULARY, 2)
    assert len({VOCABULARY, *orders}) == 3
    for order in orders:
        classes = zip(order.synonyms, order.is_thing, order.source_names, strict=True)
        wanted = zip(VOCABULARY.synonyms, VOCABULARY.is_thing, VOCABULARY.source_names, strict=True)
        assert sorted(classes) == sorted(wanted)


def test_rows_of_an_image() -> None:
    model = segmentor()
    same = measure_names(model, [VOCABULARY], masks=5, repeats=2)
    assert (same.rows_stacked, same.rows_mapped) == (0, 1)  # only void is mapped
    assert len(same.cpu_seconds) == 2
    many = [Vocabulary((("a",), (f"thing {i}", "b")), (True, True)) for i in range(20)]
    others = measure_names(model, many, masks=5, repeats=2)
    assert (others.rows_stacked, others.rows_mapped) == (2 * 3, 3 + 1)


def test_fcclip_has_no_linear_layer() -> None:
    model = build_model(golden_families.tiny_config("fcclip")).eval()
    cost = measure_names(model, [VOCABULARY], masks=5, repeats=1)
    assert (cost.rows_stacked, cost.rows_mapped, len(cost.cpu_seconds)) == (0, 0, 1)


def test_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "names.txt").write_text("".join(f"thing: thing {i}\n" for i in range(60)))
    arguments = ["odise_tiny", "--vocabulary", str(tmp_path / "names.txt"), "--masks", "4"]
    assert tool.main([*arguments, "--repeats", "3", "--format", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["classes"], result["synonyms"]) == (60, 60)
    assert (result[tool.OTHERS]["rows_stacked"], result[tool.OTHERS]["rows_mapped"]) == (120, 61)
    assert (result[tool.SAME]["rows_stacked"], result[tool.SAME]["rows_mapped"]) == (0, 1)
    (row, _) = tool.make_table(result).rows
    assert row[:3] == (tool.OTHERS, "120", "61")


def test_unknown_vocabulary(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        tool.main(["odise_tiny", "--vocabulary", "cocoo"])
    assert stopped.value.code == 2 and "cocoo" in capsys.readouterr().err
