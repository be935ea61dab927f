"""Errors share one base class and are printed as one line; bugs keep their traceback."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from odise_mm import errors
from odise_mm.utils.command_line import one_line_errors

OURS = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c is not errors.OdiseError]


@pytest.mark.parametrize("kind", [*OURS, OSError, FloatingPointError])
def test_user_errors_are_printed_as_one_line(
    kind: type[Exception], capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise kind("this is wrong; do that")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: this is wrong; do that\n"


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, KeyError, AssertionError])
def test_a_bug_keeps_its_traceback(kind: type[Exception]) -> None:
    with pytest.raises(kind), one_line_errors():
        raise kind("a bug")


def test_errors_are_also_value_or_runtime_errors() -> None:
    assert len(OURS) >= 7
    for kind in OURS:
        assert issubclass(kind, errors.OdiseError)
        assert issubclass(kind, (ValueError, RuntimeError))


def test_import_is_light() -> None:
    code = (
        "import sys, odise_mm.utils.command_line, odise_mm.utils.precision; "
        "assert not {'torch', 'mmengine', 'mmcv'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
