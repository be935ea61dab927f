"""One policy for errors: one base class, one handler, and bugs keep their traceback."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from odise_mm import errors
from odise_mm.utils.command_line import one_line_errors

OURS = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c is not errors.OdiseError]


@pytest.mark.parametrize("kind", [*OURS, OSError, FloatingPointError])
def test_what_a_user_can_set_right_is_one_line(
    kind: type[Exception], capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise kind("it is so; do this")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: it is so; do this\n"


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, KeyError, AssertionError])
def test_a_bug_keeps_its_traceback(kind: type[Exception]) -> None:
    with pytest.raises(kind), one_line_errors():
        raise kind("a bug")


def test_every_error_is_caught_as_what_it_also_is() -> None:
    assert len(OURS) >= 7
    for kind in OURS:
        assert issubclass(kind, errors.OdiseError)
        assert issubclass(kind, (ValueError, RuntimeError))


def test_importing_them_is_quick() -> None:
    code = (
        "import sys, odise_mm.utils.command_line, odise_mm.utils.precision; "
        "assert not {'torch', 'mmengine', 'mmcv'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
