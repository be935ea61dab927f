"""Create .venv with the tested versions, unless it is up to date (called by ``make``).

Usage: python requirements/make_venv.py [additional arguments for pip]

This program needs only the standard library. ``.venv/.installed`` records the interpreter and the
content of the files below. ``.venv/.installing`` exists while pip runs. If it still exists at the
start, the previous installation was interrupted, and the environment is created again.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
DONE, BUSY = VENV / ".installed", VENV / ".installing"
HEADLESS = ("opencv-python-headless", "./requirements/opencv_headless")
SOURCES = (
    "constraints.txt",
    "pyproject.toml",
    "setup.py",
    "requirements/*.txt",
    "requirements/*.py",
    "requirements/*/*.py",
    "requirements/*/*.toml",
)


def python_key() -> str:
    """Return a line that identifies the interpreter."""
    return f"{sys.version.split()[0]} {sys.base_prefix}"


def files_key() -> str:
    """Return a hash of the files that determine what is installed."""
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def pip(*arguments: str) -> None:
    """Run pip in the environment, with the tested versions as constraints."""
    command = [VENV / "bin/python", "-m", "pip", "install", "--disable-pip-version-check"]
    command.append("--no-compile")  # pip would use one core, see compile_modules
    constraints = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run([*command, *constraints, *arguments, *sys.argv[1:]], cwd=ROOT, check=True)


def compile_modules() -> None:
    """Compile all modules with all cores; containers often let Python write no bytecode later."""
    command = [VENV / "bin/python", "-m", "compileall", "-qq", "-j", "0", str(VENV / "lib")]
    subprocess.run(command, check=False)  # some packages have files for other versions of Python


def main() -> None:
    """Bring .venv up to date.

    Raises:
        SystemExit: Python has no venv module, or pip failed.
    """
    wanted = [python_key(), files_key()]
    found = DONE.read_text().splitlines() if DONE.is_file() else []
    if found == wanted and not BUSY.exists():
        return
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            minor = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise SystemExit(
                f"This Python ({sys.executable}) has no module '{module}'. On Debian and Ubuntu: "
                f"apt install python{minor}-venv. Or use another one: make PYTHON=python3.11 test"
            )
    if found[:1] != wanted[:1] or BUSY.exists():
        if VENV.exists():
            print("Removing .venv: it is incomplete, or was created by another Python.", flush=True)
            shutil.rmtree(VENV)
        print(
            "Creating .venv: this downloads about 3 GB, mostly torch's CUDA libraries.", flush=True
        )
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    else:
        print("Updating .venv.", flush=True)
        sys.argv.append("--quiet")
    BUSY.touch()
    DONE.unlink(missing_ok=True)
    try:
        # Install torch first, with the version of constraints.txt, because setup.py keeps the
        # installed one; and OpenCV without libGL, which servers and containers often lack.
        pip("-r", "requirements/runtime.txt", *HEADLESS)
        pip("-e", ".", "-r", "requirements/tests.txt", "-r", "requirements/docs.txt")
        compile_modules()
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f"Installation into .venv failed (exit status {error.returncode}); see above."
        ) from error
    DONE.write_text("\n".join(wanted) + "\n")
    BUSY.unlink()


if __name__ == "__main__":
    main()
