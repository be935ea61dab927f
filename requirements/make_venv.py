"""Create .venv with the tested versions, or do nothing if it is up to date (``make`` calls this).

Usage: python requirements/make_venv.py [further arguments for pip]

Standard library only. ``.venv/.installed`` records what the environment was made from: the
interpreter and the content of the files below. ``.venv/.installing`` exists while pip works; an
environment in which it is found was interrupted and is made anew.
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
    """Line that names the interpreter."""
    return f"{sys.version.split()[0]} {sys.base_prefix}"


def files_key() -> str:
    """Digest of the files that say what is installed."""
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def pip(*arguments: str) -> None:
    """Run the environment's pip, with the tested versions as constraints."""
    command = [VENV / "bin/python", "-m", "pip", "install", "--disable-pip-version-check"]
    constraints = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run([*command, *constraints, *arguments, *sys.argv[1:]], cwd=ROOT, check=True)


def main() -> None:
    """Bring .venv up to date.

    Raises:
        SystemExit: Python lacks its venv module, or pip failed; the message says what to do.
    """
    wanted = [python_key(), files_key()]
    had = DONE.read_text().splitlines() if DONE.is_file() else []
    if had == wanted and not BUSY.exists():
        return
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            minor = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise SystemExit(
                f"This Python ({sys.executable}) has no module '{module}'. On Debian and Ubuntu: "
                f"apt install python{minor}-venv. Or choose another: make PYTHON=python3.11 test"
            )
    if had[:1] != wanted[:1] or BUSY.exists():
        if VENV.exists():
            print("Making .venv anew: interrupted before, or made by another Python.", flush=True)
            shutil.rmtree(VENV)
        print("Making .venv: about 3 GB to download, most of it torch's CUDA parts.", flush=True)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    else:
        print("Bringing .venv up to date.", flush=True)
        sys.argv.append("--quiet")
    BUSY.touch()
    DONE.unlink(missing_ok=True)
    try:
        # First torch, which setup.py leaves as it finds it: here it follows constraints.txt. And
        # OpenCV without libGL, which servers and containers lack.
        pip("-r", "requirements/runtime.txt", *HEADLESS)
        pip("-e", ".", "-r", "requirements/tests.txt", "-r", "requirements/docs.txt")
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f"Installing into .venv failed (exit {error.returncode}); see above."
        ) from error
    DONE.write_text("\n".join(wanted) + "\n")
    BUSY.unlink()


if __name__ == "__main__":
    main()
