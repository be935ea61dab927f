"""Names of files, classes and keys cannot control the terminal, forge lines or add markup.

Programs also end quietly if nobody reads their output.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from odise_mm.benchmarks.tables import Table, show
from odise_mm.cli import segment as image_demo
from odise_mm.cli import test as test_tool
from odise_mm.errors import ConfigError
from odise_mm.utils.command_line import NOBODY_READS, Parser, one_line_errors
from odise_mm.visualization.text import tidy
from tests.support.fake_segmentor import CONFIG
from tests.support.small_test_set import SET_CONFIG, write_project

ROOT = Path(__file__).parents[2]
HOSTILE = "a\x1b]0;title\x07\x1b[2J\nerror: all is lost\r\u202eb"


def is_safe(text: str) -> bool:
    """Return whether a text has no control characters and no forged lines."""
    signs = set(text) - {"\n"}
    return all(s.isprintable() or s == " " for s in signs) and not re.search(r"^error: all", text)


def test_messages_are_one_line(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit), one_line_errors():
        raise ConfigError(f"no config {HOSTILE}")
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and is_safe(error) and "\\x1b[2J\\nerror" in error


def test_argparse_messages(capsys: pytest.CaptureFixture) -> None:
    parser = Parser("a program")
    parser.add_argument("--number", type=int)
    for arguments in (["--number", HOSTILE], [HOSTILE], [f"--{HOSTILE}"]):
        with pytest.raises(SystemExit):
            parser.parse_args(arguments)
        assert is_safe(capsys.readouterr().err)


def test_log_lines(capsys: pytest.CaptureFixture) -> None:
    logger, handler = logging.getLogger("foreign text"), logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    with one_line_errors():
        logger.warning("reading %s", HOSTILE)
        logger.warning("two\nlines\tof a config, %d %%", 1)
    logger.removeHandler(handler)
    first, *_, two, lines = capsys.readouterr().err.splitlines()
    assert first == r"reading a\x1b]0;title\x07\x1b[2J"
    assert (two, lines) == ("two", "lines\tof a config, 1 %")


def test_the_demo_shows_names_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fake.py").write_text(CONFIG)
    pictures = [HOSTILE.replace("/", "") + ".png", "d[v2].png", "e[/v2].png", ":car:.png"]
    Path("e[").mkdir()
    for name in pictures:
        Image.new("RGB", (20, 10)).save(name)
    Path("[bold]bad\x1b[31m.png").write_bytes(b"no image")
    arguments = [*pictures, "[bold]bad\x1b[31m.png", "--texts", "red [bold] \x1b[2J ball; :cat:"]
    names = ["--config", "fake.py", "--device", "cpu", "--out", "out[/v2]", "--no-progress"]
    assert image_demo.main([*arguments, *names]) == 1
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert is_safe(re.sub(r"\d\d/\d\d [^\n]*", "", shown))
    for text in ("d[v2].png", "e[/v2].png", ":car:.png", "red [bold]", ":cat:", "[bold]bad\\x1b"):
        assert text in shown, text
    assert "wrote out[/v2]/panoptic.json" in shown


@pytest.mark.parametrize("name", ["d[v2]", "e[/v2]"])
def test_sets_and_classes_with_brackets(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_project(tmp_path, {"one": (20,)})
    monkeypatch.chdir(tmp_path)
    for file in (Path("data/one/names.txt"), Path("data/one/panoptic.json")):
        file.write_text(re.sub(r"\bcat\b", "cat [/v2]", file.read_text()))
    Path("e[").mkdir()
    own = SET_CONFIG.format(name="one").replace('"data/one/names.txt"', '"./data/one/names.txt"')
    Path(f"{name}.py").write_text(Path("model.py").read_text() + own)
    out = f"{name}.json"
    assert test_tool.main([f"{name}.py", "none", "--per-class", "--out", out]) == 0
    shown = capsys.readouterr().out
    assert (
        f"{Path(name).name}: classes" in shown and "cat [/v2]" in shown and f"wrote {out}" in shown
    )


def test_tables_in_markdown_hold_any_text(capsys: pytest.CaptureFixture) -> None:
    rows = [["a|b<script>", "1 *"], ["x\ny", "2"]]
    table = Table("A | B", ["name", "PQ"], rows, ["*all* [x](y)"])
    show([table], {}, "markdown")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == r"### A \| B"
    assert lines[4:6] == [r"| a\|b&lt;script> | 1 * |", r"| x\\ny | 2 |"]
    assert lines[7] == r"- \*all\* \[x\](y)"
    show([Table("[/a] :car:", ["[b]"], [["[/c] of a wide column"]], ["\x1b[2J"])], {}, "table")
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("[/a] :car:", "[b]", "[/c]", "\\x1b[2J"))


def test_names_drawn_on_images_are_one_line() -> None:
    assert tidy(HOSTILE, 60).isprintable()


WRITERS = {
    "print": "for i in range(10**5): print('line', i)",
    "log": (
        "import logging\n"
        "    logging.basicConfig(stream=sys.stdout, level='INFO')\n"
        "    for i in range(10**5): logging.info('line %d', i)"
    ),
    "rich": (
        "from rich.console import Console\n    for i in range(10**4): Console().print('line', i)"
    ),
    "at the end": "print('line'); time.sleep(0.5)",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_broken_pipes_end_programs_quietly(writer: str) -> None:
    code = (
        "import sys, time\n"
        "from odise_mm.utils.command_line import one_line_errors\n"
        f"with one_line_errors():\n    {WRITERS[writer]}"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    if writer != "at the end":
        assert program.stdout.readline()
    program.stdout.close()
    errors = program.stderr.read()
    program.stderr.close()
    assert program.wait(60) == NOBODY_READS and errors == b""
