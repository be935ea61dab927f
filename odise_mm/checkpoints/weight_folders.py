"""Weights in folders of diffusers, transformers and open_clip, on disk or on the hub.

A folder may contain several copies of the same weights: as safetensors and in torch's format, in
full and in half precision ("variants", marked in the file name), in one file or in shards with an
index.
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

# In order of preference; "" is a file name without a variant. fp16 has more digits than bf16;
# non_ema are the weights without averaging.
VARIANTS = ("", "fp32", "ema", "fp16", "bf16", "non_ema")
ENDINGS = ("safetensors", "bin")

_SHARD = re.compile(r".*-\d+-of-\d+")


@dataclass(frozen=True)
class WeightSet:
    """One complete copy of the weights in a folder.

    Attributes:
        variant: variant in the file name, such as ``fp16``; empty for full precision.
        ending: ``safetensors`` or ``bin``.
        path: the weights file, or the index of the shards.
    """

    variant: str
    ending: str
    path: Path

    @property
    def is_index(self) -> bool:
        """Whether ``path`` is the index of a sharded copy."""
        return self.path.suffix == ".json"

    def files(self) -> list[Path]:
        """Return the weights files of this copy.

        Raises:
            CheckpointError: the index is invalid, or names a file that is missing or outside the
                folder.
        """
        if not self.is_index:
            return [self.path]
        content = read_json(self.path, CheckpointError, "index of weights")
        names = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(names, dict) or not names:
            raise CheckpointError(
                f"{printable(self.path)} is not a valid index of weights: it has no weight_map; "
                "download the file again"
            )
        what = f"{printable(self.path)}: weight_map"
        folder = self.path.parent
        shards = {str(n): path_inside(folder, n, CheckpointError, what) for n in names.values()}
        gone = sorted(name for name, path in shards.items() if not path.is_file())
        if gone:
            raise CheckpointError(
                f"{printable(self.path)} names {printable(gone[0])}, which is not in the folder "
                f"({len(gone)} of {len(shards)} shards are missing): download the missing files, "
                "or remove the index to use another copy of the weights in the folder"
            )
        return [shards[name] for name in sorted(shards)]


def find_weights(folder: Path, stems: Sequence[str]) -> list[WeightSet]:
    """Return all copies of the weights in a folder, the best first.

    Full precision is preferred to half precision, then safetensors to torch's format.

    Args:
        folder: folder that is searched, without its subfolders.
        stems: file names without variant and ending, such as ``diffusion_pytorch_model``.
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
    """Return variant and ending of a file name; None for shards and other files."""
    if not name.startswith(f"{stem}."):
        return None
    words = name[len(stem) + 1 :].split(".")
    if words[-1] == "json":
        # The variant may be after "index", before it, or before the ending.
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
    """Return the files of the best copy of the weights in a folder, see :func:`find_weights`.

    Args:
        folder: folder with the weights.
        stems: file names without variant and ending.
        what: description of the weights, for messages, such as "weights of BLIP".

    Raises:
        CheckpointError: the folder has no weights (the message lists its files), only several
            copies of unknown variants, or a shard is missing.
    """
    found = find_weights(folder, stems)
    if not found:
        wanted = f"{stems[0]}.{ENDINGS[0]}, {stems[-1]}.{ENDINGS[1]}"
        raise CheckpointError(
            f"{printable(folder)} has no {what}: expected {wanted}, shards with an index, or a "
            f"variant such as {stems[0]}.fp16.{ENDINGS[0]}; found {_listing(folder)}"
        )
    best = found[0]
    others = {weights.variant for weights in found}
    if best.variant not in VARIANTS and len(others) > 1:
        raise CheckpointError(
            f"{printable(folder)} has {what} in {len(others)} unknown variants "
            f"({', '.join(map(printable, sorted(others)))}): keep only one of them in the folder"
        )
    if best.variant:
        print_log(
            f"{printable(folder)}: reading {what} from {printable(best.path.name)}, because there "
            f"is no {stems[0]} without the variant {printable(best.variant)}",
            logger="current",
        )
    # Fall back from an incomplete index to a single file, but never to another precision.
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
    """Read the best copy of the weights in a folder, see :func:`choose_weights`.

    Args:
        folder, stems, what: see :func:`choose_weights`.
        keep, fits: see :func:`odise_mm.checkpoints.safe_loading.load_state_dict`.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        CheckpointError: the folder has no usable weights.
    """
    state: dict[str, Tensor] = {}
    for path in choose_weights(folder, stems, what):
        state.update(load_state_dict(path, keep, fits))
    return state


def download_weights(
    repository: str, parts: Mapping[str, Sequence[str]], others: Sequence[str] = ()
) -> Path:
    """Download the best copy of the weights for each part of a hub repository, once.

    Variants and formats are requested one after the other, so that no part is downloaded twice.

    Args:
        repository: ``owner/name``.
        parts: file names without variant and ending, by folder in the repository ("" for its root).
        others: patterns of additional files to download.

    Returns:
        The local folder; parts that the hub does not have are missing from it.
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
    """Return patterns of file names that match one variant and ending, and no others."""
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
