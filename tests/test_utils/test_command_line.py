"""``--cfg-options`` is parsed in all programs as in those of OpenMMLab."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config, DictAction

from odise_mm.cli import test, train
from odise_mm.config.changing import change_config
from odise_mm.utils.command_line import ConfigOptions
from tools.analysis_tools import browse_dataset, save_predictions
from tools.run_study import parse_args as parse_study


def parse(action: type[argparse.Action], *arguments: str) -> dict:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=action)
    return parser.parse_args(arguments).cfg_options


def ours(*arguments: str) -> dict:
    return parse(ConfigOptions, *arguments)


VALUES = (
    "3", "-3", "+4", "0", "007", "1_000", "0x10", "3.5", "-.5", "1e-4", "1E5", "inf", "-inf",
    "true", "True", "TRUE", "false", "fAlSe", "None", "none", "NONE", "null",
    "text", "two words", " padded ", "", "''", '""', "'quoted'", '"quoted"', "'3'", '"true"',
    "1,2,3", "a,b", "1,", ",1", "a, b ,c", "1,true,None,x", "(1)", "(1,)", "[1]", "[]", "()",
    "[1,2]", "(1,2)", "(1, 2)", "[a,b]", "['a', 'b']", '["a","b"]', "[(a,b),(c,d)]",
    "[(1,2),[3,(4,)],x]", "((1,2),3)", "(1,2),(3,4)", "'[(1,2),(3,4)]'", "[[1,2],[]]",
    "a=b", "k=v=w", "x=[1,2]", "==", "data/a b/c.txt", "~/w.pth", "C:\\folder\\w.pth",
    "http://host:80/x?y=z", "data/[old]/w.pth", "w(1).pth", "100%", "#1", "a:b", "{x}", "{a,b}",
    "[1", "1)", "a(", "lambda x: x", "Köln", "日本",
)  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_values_are_parsed_as_by_mmengine(value: str) -> None:
    given = "--cfg-options", f"model.x.0.y={value}"
    try:
        expected = parse(DictAction, *given)
    except (AssertionError, RecursionError):  # mmengine's errors for unbalanced brackets
        with pytest.raises(SystemExit):
            ours(*given)
        return
    found = ours(*given)
    assert found == expected and list(found) == ["model.x.0.y"]
    assert type(found["model.x.0.y"]) is type(expected["model.x.0.y"])


def test_documented_values() -> None:
    """Values of mmengine's documentation, independent of its installed version."""
    table = {
        "1e-4": 1e-4, "True": True, "false": False, "None": None, "none": "none", "a,b": ["a", "b"],
        "(320,640)": (320, 640), "[(a,b),(c,d)]": [("a", "b"), ("c", "d")], "x=y": "x=y",
        "'text'": "text", "'1'": 1,
    }  # fmt: skip
    for value, expected in table.items():
        assert ours("--cfg-options", f"k={value}") == {"k": expected}, value
    assert math.isnan(ours("--cfg-options", "k=nan")["k"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cfg-options", "a=1", "b.c=2", "--cfg-options", "d=3"),
        ("--cfg-options", "a=1", "--cfg-options", "a=2"),
        ("--cfg-options", "a=1", "a=[1,2]", "b=2", "--cfg-options", "b=x", "--cfg-options", "c=,"),
    ],
)
def test_repeated_options_are_merged(arguments: tuple[str, ...]) -> None:
    assert ours(*arguments) == parse(DictAction, *arguments)


def test_options_do_not_leak_into_the_next_call() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", action=ConfigOptions)
    assert parser.parse_args(["--cfg-options", "a=1"]).cfg_options == {"a": 1}
    assert parser.parse_args(["--cfg-options", "a={'b': 1}"]).cfg_options == {"a": {"b": 1}}
    assert parser.parse_args([]).cfg_options == {}


def test_python_dictionaries() -> None:
    hooks = "[{'type': 'EMAHook', 'momentum': 1e-4}, {'type': 'X', 'names': ['a b', 'c']}]"
    found = ours("--cfg-options", f"custom_hooks={hooks}", "model.x={}", "y=1")
    assert found == {
        "custom_hooks": [
            {"type": "EMAHook", "momentum": 1e-4},
            {"type": "X", "names": ["a b", "c"]},
        ],
        "model.x": {},
        "y": 1,
    }


@pytest.mark.parametrize(
    "text", ["novalue", "=3", ".a=3", "a..b=3", "a.=3", "a=[1,2", "a=),(", "a=b(1,2)"]
)
def test_invalid_options_exit_with_one_line(text: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        ours("--cfg-options", "b=1", text)
    assert end.value.code == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert "error: argument --cfg-options: " in line and text in line


@pytest.mark.parametrize(
    "parse_args, positional",
    [
        (train.parse_args, ["c.py"]),
        (test.parse_args, ["c.py", "w.pth"]),
        (browse_dataset.parse_args, ["c.py"]),
        (save_predictions.parse_args, ["c.py", "w.pth", "--out", "o"]),
    ],
)
def test_all_programs(parse_args: Callable, positional: list[str]) -> None:
    options = ["--cfg-options", "train_cfg.max_iters=5", "--cfg-options", "a.1.b=(2,3)", "c=x=y"]
    found = parse_args([*positional, *options]).cfg_options
    assert dict(found) == {"train_cfg.max_iters": 5, "a.1.b": (2, 3), "c": "x=y"}
    assert not parse_args(positional).cfg_options


def test_studies_pass_on_all_options() -> None:
    options = ["--cfg-options", "a=1", "b=2", "--cfg-options", "c=[1,2]"]
    assert parse_study(["configs", *options]).cfg_options == ["a=1", "b=2", "c=[1,2]"]
    assert parse_study(["configs"]).cfg_options == []


def test_list_indices_and_new_keys(tmp_path: Path) -> None:
    cfg = Config(dict(steps=[dict(scale=(1, 2)), dict(scale=(3, 4))], model=dict(depth=3)))
    options = ours("--cfg-options", "steps.1.scale=(8,9)", "model.new.deep=1", "model.depth=None")
    change_config(cfg, options)
    assert cfg.steps == [dict(scale=(1, 2)), dict(scale=(8, 9))]
    assert cfg.model == dict(depth=None, new=dict(deep=1))
