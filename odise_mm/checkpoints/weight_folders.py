"""Folders of weights as diffusers, transformers and open_clip write them, on disk or on the hub.

A folder may hold the same weights several times: as safetensors and in torch's format, in full and
in half precision ("variants", a word in the file's name), in one file or in shards with an index.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.logging import print_log
from torch import Tensor

from odise_mm.checkpoints.hub import hub_files
from odise_mm.checkpoints.safe_loading import load_state_dict
from odise_mm.errors import CheckpointError
from odise_mm.utils.display import printable
from odise_mm.utils.files import path_inside, read_json

# From the first choice to the last; "" is the file without such a word. Of the half precisions fp16
# keeps more digits; non_ema are the weights before averaging.
VARIANTS = ("", "fp32", "ema", "fp16", "bf16", "non_ema")
ENDINGS = ("safetensors", "bin")

_SHARD = re.compile(r".*-\d+-of-\d+")


@dataclass(frozen=True)
class WeightSet:
    """One complete copy of the weights in a folder.

    Attributes:
        variant: the word of its precision, ``fp16``; empty for full precision.
        ending: ``safetensors`` or ``bin``.
        path: the weights file, or the index of the shards.
    """

    variant: str
    ending: str
    path: Path

    @property
    def is_index(self) -> bool:
        """Whether the weights are in shards that ``path`` lists."""
        return self.path.suffix == ".json"

    def files(self) -> list[Path]:
        """The files to read.

        Raises:
            CheckpointError: the index is none, names a file outside the folder or one that is not
                there.
        """
        if not self.is_index:
            return [self.path]
        content = read_json(self.path, CheckpointError, "index of weights")
        names = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(names, dict) or not names:
            raise CheckpointError(
                f"{printable(self.path)}: no index of weights, as it has no weight_map; get the "
                "file again"
            )
        what = f"{printable(self.path)}: weight_map"
        folder = self.path.parent
        shards = {str(n): path_inside(folder, n, CheckpointError, what) for n in names.values()}
        gone = sorted(name for name, path in shards.items() if not path.is_file())
        if gone:
            raise CheckpointError(
                f"{printable(self.path)} names {printable(gone[0])}, which is not in the folder "
                f"({len(gone)} of {len(shards)} shards are missing): get the missing files, or "
                "remove the index to have another copy of the weights in the folder read"
            )
        return [shards[name] for name in sorted(shards)]


def find_weights(folder: Path, stems: Sequence[str]) -> list[WeightSet]:
    """All copies of the weights in a folder, the best first: full precision, then safetensors.

    Args:
        folder: is not searched below.
        stems: beginnings that the files' names may have, ``diffusion_pytorch_model``.
    """
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        for rank, stem in enumerate(stems):
            parsed = _parse(path.name, stem)
            if parsed is not None:
                weights = WeightSet(*parsed, path)
                found.append(((*_preference(weights), rank, not weights.is_index), weights))
    return [weights for _, weights in sorted(found, key=lambda pair: (pair[0], pair[1].path.name))]


def _parse(name: str, stem: str) -> tuple[str, str] | None:
    """Variant and ending of a file name; None for other files, shards among them."""
    if not name.startswith(f"{stem}."):
        return None
    words = name[len(stem) + 1 :].split(".")
    if words[-1] == "json":
        # index.json with the variant behind it, before it, or before the ending: all are written.
        if words.count("index") != 1:
            return None
        words = [word for word in words[:-1] if word != "index"]
    endings = [word for word in words if word in ENDINGS]
    others = [word for word in words if word not in ENDINGS]
    if len(endings) != 1 or len(others) > 1 or any(map(_SHARD.fullmatch, others)):
        return None
    return (others[0] if others else ""), endings[0]


def _preference(weights: WeightSet) -> tuple[int, str, int]:
    known = weights.variant in VARIANTS
    rank = VARIANTS.index(weights.variant) if known else len(VARIANTS)
    return rank, "" if known else weights.variant, ENDINGS.index(weights.ending)


def choose_weights(folder: Path, stems: Sequence[str], what: str) -> list[Path]:
    """The files of the best copy of the weights in a folder, see :func:`find_weights`.

    Args:
        what: of what, for messages: "weights of BLIP".

    Raises:
        CheckpointError: there is none, which lists what is there; several of precisions that are
            not known; a shard is missing.
    """
    found = find_weights(folder, stems)
    if not found:
        wanted = f"{stems[0]}.{ENDINGS[0]}, {stems[-1]}.{ENDINGS[1]}"
        raise CheckpointError(
            f"{printable(folder)} has no {what}: none of {wanted} is in it, nor shards with an "
            f"index, nor a variant such as {stems[0]}.fp16.{ENDINGS[0]}; found {_listing(folder)}"
        )
    best = found[0]
    others = {weights.variant for weights in found}
    if best.variant not in VARIANTS and len(others) > 1:
        raise CheckpointError(
            f"{printable(folder)} has {what} in {len(others)} kinds that are not known "
            f"({', '.join(map(printable, sorted(others)))}): keep one of them in the folder"
        )
    if best.variant:
        print_log(
            f"{printable(folder)}: {what} are read from {printable(best.path.name)}, as no "
            f"{stems[0]} without the word {printable(best.variant)} is there",
            logger="current",
        )
    # A stale index must not hide a whole file, but lower precision is never a way out.
    problem = None
    for weights in found:
        if weights.variant == best.variant:
            try:
                return weights.files()
            except CheckpointError as error:
                problem = problem or error
    raise problem


def _listing(folder: Path, limit: int = 10) -> str:
    names = sorted(printable(path.name, 80) for path in folder.iterdir())
    if len(names) > limit:
        names = [*names[:limit], f"and {len(names) - limit} more"]
    return ", ".join(names) or "nothing"


def read_weights(
    folder: Path,
    stems: Sequence[str],
    what: str,
    keep: Callable[[str], bool] | None = None,
    fits: Callable[[str], bool] | None = None,
) -> dict[str, Tensor]:
    """The weights in a folder, see :func:`choose_weights`.

    Args:
        keep, fits: see :func:`odise_mm.checkpoints.safe_loading.load_state_dict`.

    Raises:
        CheckpointError: nothing usable is there.
    """
    state: dict[str, Tensor] = {}
    for path in choose_weights(folder, stems, what):
        state.update(load_state_dict(path, keep, fits))
    return state


def download_weights(
    repository: str, parts: Mapping[str, Sequence[str]], others: Sequence[str] = ()
) -> Path:
    """Fetch the best copy of the weights of every part of a hub repository, once.

    The hub is asked for one kind of copy after the other, so that no part comes twice.

    Args:
        repository: ``owner/name``.
        parts: folders in the repository, "" for its root, and their files' stems.
        others: patterns of further files, which are fetched too.

    Returns:
        The local folder; a part of which the hub has nothing is missing in it.
    """
    missing = dict(parts)
    extra = list(others)
    for variant in VARIANTS:
        for ending in ENDINGS:
            patterns = [
                f"{part}/{name}" if part else name
                for part, stems in missing.items()
                for name in _patterns(stems, variant, ending)
            ]
            folder = hub_files(repository, [*extra, *patterns])
            extra = []
            missing = {
                part: stems
                for part, stems in missing.items()
                if (variant, ending)
                not in {(w.variant, w.ending) for w in find_weights(folder / part, stems)}
            }
            if not missing:
                return folder
    return folder


def _patterns(stems: Sequence[str], variant: str, ending: str) -> list[str]:
    """Names on the hub of one kind of copy, without those of any other kind."""
    number = "-?????-of-?????"
    if not variant:
        names = ("{s}.{e}", "{s}.{e}.index.json", f"{{s}}{number}.{{e}}")
    else:
        names = (
            "{s}.{v}.{e}",
            "{s}.{e}.index.{v}.json",
            f"{{s}}.{{v}}{number}.{{e}}",
            # older spellings
            "{s}.{e}.{v}.index.json",
            "{s}.{v}.{e}.index.json",
            f"{{s}}{number}.{{v}}.{{e}}",
        )
    return [name.format(s=stem, e=ending, v=variant) for stem in stems for name in names]
