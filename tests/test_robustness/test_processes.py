"""Child processes end with their parent; only one run writes to a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from odise_mm.cli import test as test_program
from odise_mm.cli import train
from odise_mm.utils import processes
from odise_mm.utils.files import FolderLock
from tests.support.small_training import CONFIG

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60  # generous, for busy machines

CHILD = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from odise_mm.utils import processes
{before}
processes.follow_parent({launcher!r})
Path(sys.argv[-1]).write_text(str(os.getpid()))
time.sleep(120)
"""
PARENT = """
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes ignore it
sys.path.insert(0, {root!r})
from odise_mm.utils.processes import run_child
command = [sys.executable, {child!r}, {note!r}]
{run}
"""


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        if sys.platform == "linux":
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True
    return state != "Z"  # a zombie has ended


@pytest.mark.skipif(os.name != "posix", reason="Windows ends no children")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kernel", [True, False])
def test_a_child_ends_with_its_parent(tmp_path: Path, number: int, kernel: bool) -> None:
    child, note = tmp_path / "child.py", tmp_path / "pid"
    before = "" if kernel else "processes._ask_kernel = lambda: False"
    child.write_text(CHILD.format(root=str(ROOT), before=before, launcher="none"))
    run = "run_child(command, sys.stderr)"
    code = PARENT.format(root=str(ROOT), child=str(child), note=str(note), run=run)
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as parent:
        wait_for(lambda: note.is_file() and note.read_text(), "the child did not start")
        parent.send_signal(number)
        wait_for(lambda: not is_running(int(note.read_text())), "the child outlived its parent")


@pytest.mark.skipif(os.name != "posix", reason="Windows ends no children")
@pytest.mark.parametrize("launcher, follows", [("pytorch", True), ("none", False)])
def test_workers_end_with_a_killed_launcher(tmp_path: Path, launcher: str, follows: bool) -> None:
    """Other runs survive their parent: a shell may start a run in the background and exit."""
    child, note = tmp_path / "child.py", tmp_path / "pid"
    child.write_text(CHILD.format(root=str(ROOT), before="", launcher=launcher))
    run = "subprocess.run(command)"
    code = PARENT.format(root=str(ROOT), child=str(child), note=str(note), run=run)
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        wait_for(lambda: note.is_file() and note.read_text(), "the child did not start")
        pid = int(note.read_text())
        parent.kill()
    if follows:
        wait_for(lambda: not is_running(pid), "the worker outlived its launcher")
        return
    time.sleep(1)
    assert is_running(pid)
    os.kill(pid, signal.SIGKILL)


def test_a_parent_that_ended_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(processes.PARENT, "999999999")
    with pytest.raises(SystemExit, match="the parent process 999999999 has ended"):
        processes.follow_parent()
    assert processes.PARENT not in os.environ


def test_a_run_ends_with_its_study(tmp_path: Path) -> None:
    """Run a real study with fake tools."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "train.py").write_text(
        CHILD.format(root=str(ROOT), before=f"sys.argv.append({str(tmp_path / 'pid')!r})",
                     launcher="none")
    )  # fmt: skip
    (tmp_path / "a.py").write_text("x = 1\n")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path\n"
        f"from tools import run_study; run_study.TOOLS = Path({str(tools)!r})\n"
        "from odise_mm.benchmarks import studies; studies.training_of = lambda config: None\n"
        "import types; engine = types.ModuleType('odise_mm.checkpoints.training_state')\n"
        "engine.latest_checkpoint = lambda folder: None  # the real one imports torch\n"
        "sys.modules.update({'odise_mm.engine': engine, engine.__name__: engine})\n"
        f"run_study.main([{str(tmp_path / 'a.py')!r}, '--work-root', {str(tmp_path / 'w')!r}])"
    )
    note = tmp_path / "pid"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as study:
        wait_for(lambda: note.is_file() and note.read_text(), "the run did not start")
        study.terminate()
        wait_for(lambda: not is_running(int(note.read_text())), "the run is still going")


@pytest.mark.parametrize("program", [train, test_program])
def test_programs_end_with_their_parent(program, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(program, "follow_parent", told.append)
    with pytest.raises(SystemExit):
        program.main(["nothing.py", *["w.pth"] * (program is test_program)])
    assert told == ["none"]


def test_a_work_directory_has_only_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, work = tmp_path / "small.py", tmp_path / "work"
    config.write_text(CONFIG)
    arguments = [str(config), "--work-dir", str(work), "--cfg-options", "train_cfg.max_iters=1"]
    with FolderLock(work, "training"):
        with pytest.raises(SystemExit) as end:
            train.main(arguments)
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert end.value.code == 2 and line.startswith(f"error: {work}: in use by process ")
        assert f"{os.getpid()} on " in line and "(training)" in line
        with pytest.raises(SystemExit):
            test_program.main([str(config), "w.pth", "--work-dir", str(work)])
        assert "in use by process" in capsys.readouterr().err
        assert not list(work.glob("*.pth"))
        # Other processes of the same run do not compete with the first.
        for rank in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
            with monkeypatch.context() as patch:
                patch.setenv(rank, "1")
                assert not processes.is_first_process()
    assert train.main(arguments) == 0
    assert train.main([*arguments[:3], "--resume", "--cfg-options", "train_cfg.max_iters=2"]) == 0
