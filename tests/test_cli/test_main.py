"""The command ``odise-mm``: fast help, one-line errors, and Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest

from odise_mm.cli import main as program
from odise_mm.cli.main import COMMANDS, main
from odise_mm.errors import ConfigError
from odise_mm.version import __version__

HARNESS = """
import sys
from odise_mm.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    heavy = {"torch", "mmcv", "mmengine", "mmdet", "diffusers", "rich"} & set(sys.modules)
    assert not end.code and not heavy, (end.code, heavy)
"""


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_no_large_library(command: str) -> None:
    words = [*command.split(), "--help"]
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"usage: odise-mm {command}".rstrip())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_a_module_of_its_name(command: str) -> None:
    module = import_module(f"odise_mm.cli.{command}")
    assert callable(module.main) and callable(module.parse_args)
    assert module.__doc__.splitlines()[0].endswith(".")
    assert f"    odise-mm {command}" in module.__doc__  # an example


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert not end.value.code
    printed = capsys.readouterr().out
    for name, summary in COMMANDS.items():
        assert f"  {name} " in printed and summary in printed


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert not end.value.code and capsys.readouterr().out == f"odise_mm {__version__}\n"


@pytest.mark.parametrize("module", ["odise_mm", "odise_mm.cli", "odise_mm.cli.main"])
def test_the_command_as_a_module(module: str) -> None:
    """Launchers start modules; a module that only defines functions would print nothing."""
    words = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"odise_mm {__version__}\n"


def test_without_a_command_help_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert "segment" in captured.err and not captured.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["segmnt"], "odise-mm: error: unknown command 'segmnt' (did you mean segment?)"),
        (["\x1b[1m"], "unknown command '\\x1b[1m' (choose from segment, label, explain, "),
        (["--jsn"], "odise-mm: error: unrecognized arguments: --jsn"),
        (["info", "--jsn"], "odise-mm info: error: unrecognized arguments: --jsn"),
        (["train"], "odise-mm train: error: the following arguments are required: CONFIG"),
        (["train", "no_such"], "error: no config 'no_such'"),
        (["segment", "a.jpg", "--config", "no_such"], "error: no config 'no_such'"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err and "\x1b" not in captured.err
    assert captured.err.splitlines()[-1].startswith(("error: ", "odise-mm"))


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 128 + signal.SIGINT, "interrupted"),
        (ConfigError("it is wrong"), 2, "error: it is wrong"),
    ],
)
def test_errors_of_a_command_are_one_line(
    error: BaseException,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(argv: list[str], prog: str) -> int:
        assert (argv, prog) == (["x.jpg"], "odise-mm segment")
        raise error

    monkeypatch.setattr(program, "import_module", lambda name: SimpleNamespace(main=fail))
    with pytest.raises(SystemExit) as end:
        main(["segment", "x.jpg"])
    assert end.value.code == status
    assert capsys.readouterr().err == f"{line}\n"


def test_the_status_is_that_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    command = SimpleNamespace(main=lambda argv, prog: 1)
    monkeypatch.setattr(program, "import_module", lambda name: command)
    assert main(["segment", "x.jpg"]) == 1
