"""Finding and loading of configs by path or name."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from pathlib import Path

from mmengine.config import Config

from odise_mm.errors import ConfigError
from odise_mm.utils.files import regular_file
from odise_mm.utils.old_keys import rename_model_keys


def config_folders() -> list[Path]:
    """Return the folders in which config names are looked up.

    These are ``configs/`` in the working directory, and the package's configs: those in the
    repository or those in the installed wheel.
    """
    folders: dict[Path, Path] = {}
    for folder in (Path.cwd() / "configs", *_package_folders()):
        folders.setdefault(folder.resolve(), folder)  # one may be a link to another
    return [folder for folder in folders.values() if folder.is_dir()]


def own_config_folders() -> list[Path]:
    """Return the folders of :func:`config_folders` that are part of the package."""
    own = {folder.resolve() for folder in _package_folders()}
    return [folder for folder in config_folders() if folder.resolve() in own]


def _package_folders() -> tuple[Path, Path]:
    package = Path(__file__).resolve().parents[1]
    # In an editable installation, the first is a link to the second.
    return (package / ".mim" / "configs").resolve(), package.parent / "configs"


def known_configs() -> dict[str, Path]:
    """Return the files of all configs by names that :func:`load_config` accepts.

    A name is the file's stem if that is unique, otherwise its path below ``configs/``, or the full
    path if both the working directory and the package have the latter.
    """
    own = own_config_folders()
    folders = [folder for folder in config_folders() if folder not in own[1:]]  # same content
    paths = [
        (file, file.relative_to(f).with_suffix("")) for f in folders for file in _configs_in(f)
    ]
    stems = Counter(path.name for _, path in paths)
    places = Counter(path for _, path in paths)
    named: dict[str, Path] = {}
    for file, path in paths:
        unique = path.name if stems[path.name] == 1 else path.as_posix()
        named[unique if places[path] == 1 else str(file)] = file
    return named


def load_config(config: str | os.PathLike | Config) -> Config:
    """Load a config from a path or a name under ``configs/``; copy it if it is loaded already.

    A config is a Python program, which is run when it is loaded.

    Args:
        config: e.g. ``configs/odise/odise_coco_label.py``, ``odise/odise_coco_label`` or
            ``odise_coco_label``.

    Raises:
        ConfigError: the config does not exist, the name matches several files (in the package, in
            the working directory, or in both), or the file is not a valid config.
    """
    if isinstance(config, Config):
        copied = config.copy()
        rename_model_keys(copied.get("model"))
        return copied
    path = _find_config(os.fspath(config))
    try:
        loaded = Config.fromfile(path)
    except Exception as err:  # a Python file can raise anything
        raise ConfigError(f"{path}: not a valid config: {type(err).__name__}: {err}") from err
    # mmengine formats the text of a config with yapf each time it is logged or saved: six times per
    # run, 1.5 s each. Without yapf, every setting is on a line of its own. (Config.fromfile has an
    # argument for this, but ignores it for configs in this style: mmengine 0.10.7.)
    object.__setattr__(loaded, "_format_python_code", False)
    rename_model_keys(loaded.get("model"))
    return loaded


def _find_config(name: str) -> Path:
    path = Path(name).expanduser()
    if os.path.exists(path) and not path.is_dir():
        return regular_file(path, ConfigError, "config file")
    wanted = Path(name if name.endswith(".py") else name + ".py").parts
    own, known = own_config_folders(), set()
    # The package's folders have the same content, so the first one with a match is used.
    hits: dict[bool, list[Path]] = {}
    for folder in config_folders():
        files = _configs_in(folder)
        known |= {f.stem for f in files}
        exact = folder.joinpath(*wanted)
        found = [exact] if exact in files else [f for f in files if _ends_in(f, wanted)]
        if found:
            hits.setdefault(folder in own, found)
    for found in hits.values():
        if len(found) > 1:
            raise ConfigError(
                f"config {name!r} matches several files: {', '.join(map(str, found))}"
            )
    if len(hits) == 2:
        raise ConfigError(
            f"config {name!r} matches {hits[False][0]} and the package's {hits[True][0]}: give the "
            "path of one of them"
        )
    for found in hits.values():
        return found[0]
    close = difflib.get_close_matches(Path(name).stem, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise ConfigError(
        f"no config {name!r}: neither a file nor a name under configs/.{hint} "
        f"Available configs: {', '.join(sorted(known)) or 'none'}"
    )


def _configs_in(folder: Path) -> list[Path]:
    return [f for f in sorted(folder.rglob("*.py")) if "_base_" not in f.parts]


def _ends_in(path: Path, wanted: tuple[str, ...]) -> bool:
    return path.parts[-len(wanted) :] == wanted
