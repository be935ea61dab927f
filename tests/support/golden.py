"""Recordings of the published model, and the random weights it was run with.

This module provides

* the random weights in the *published* file formats (:func:`write_sd`, :func:`write_clip`,
  :func:`write_odise`). Every parameter is drawn from a generator seeded with its key.
* recorded stages and results of the published implementation with these weights
  (:func:`load_case`, :class:`GoldenCase`).
* recorded post-processing cases (:func:`load_postproc`).

``tests/data`` contains subsampled recordings. The complete ones, which include the full-size
model, are read from the folder in the environment variable ``ODISE_GOLDEN_DIR``.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

DATA = Path(__file__).parents[1] / "data"
ENV_FOLDER = "ODISE_GOLDEN_DIR"
CASES = (
    "tiny_label_512x512",
    "tiny_label_512x704",
    "tiny_caption_512x512",
    "tiny_caption_500x690",
)
POSTPROC_CASES = ("c0", "c1", "c2")
PROJECTION_ROWS = 8  # of the projections' gradients, every 8th row is recorded

# ----------------------------------------------------------------------------- weights

# The first pattern found in a key is used. "rule": factor on the general rule; "normal": factor on
# a standard normal draw; "value": constant. No pattern for one file matches a key of another.
_BLOCK = r"transformer\.resblocks\.\d+\."
_LAYER = r"predictor\.transformer_"
_EXCEPTIONS: tuple[tuple[str, str, float], ...] = (
    (r"^logit_scale$", "value", 4.6052),
    (r"sem_seg_head\.predictor\.post_mask_embed\.logit_scale", "value", 4.0),
    (r"feature_extractor\.alpha_cond$", "normal", 0.5),
    (r"feature_extractor\.alpha_cond_time_embed$", "normal", 0.5),
    (
        r"feature_extractor\.(clip_project|time_embed_project)\.positional_embedding$",
        "normal",
        0.5,
    ),
    (r"predictor\.query_(feat|embed)\.weight$", "normal", 1.0),
    (
        _LAYER + r"(self|cross)_attention_layers\.\d+\."
        r"(self_attn|multihead_attn)\.out_proj\.(weight|bias)$",
        "rule",
        0.2,
    ),
    (_LAYER + r"ffn_layers\.\d+\.linear2\.(weight|bias)$", "rule", 0.2),
    (r"post_mask_embed\.pool_proj\.1\.weight$", "rule", 0.5),
    (r"pixel_decoder\.mask_features\.bias$", "rule", 7.0),
    (r"predictor\.class_embed\.weight$", "rule", 4.0),
    (r"^visual\.conv1\.weight$", "rule", 3.0),
    (r"^token_embedding\.weight$", "rule", 8.0),
    (r"^visual\." + _BLOCK + r"attn\.in_proj_weight$", "rule", 2.0),
    (r"^visual\." + _BLOCK + r"attn\.out_proj\.weight$", "rule", 4.0),
    (r"^visual\." + _BLOCK + r"mlp\.c_proj\.weight$", "rule", 0.5),
    (r"^" + _BLOCK + r"attn\.in_proj_weight$", "rule", 2.0),
    (r"^" + _BLOCK + r"attn\.out_proj\.weight$", "rule", 2.0),
    (r"^" + _BLOCK + r"mlp\.c_proj\.weight$", "rule", 0.5),
)
_SALTS: dict[str, dict[str, str]] = {
    "tiny": {"category_head.text_proj.weight": "#15", "category_head.null_embed": "#32"},
    "full": {"category_head.text_proj.weight": "#5", "category_head.null_embed": "#13"},
}
for _salts in _SALTS.values():
    _salts["word_head.text_proj.weight"] = "#5"
    _salts["sem_seg_head.predictor.class_embed.weight"] = "#6"


@lru_cache(maxsize=1)
def key_lists() -> dict[str, dict[str, Any]]:
    """Return all lists of ``keys.json``, such as ``{size}/sd_v1`` and ``{size}/odise_label``."""
    return json.loads(gzip.decompress((DATA / "keys.json.gz").read_bytes()))


def shapes(size: str, file: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters in a published file.

    Args:
        size: ``"tiny"`` or ``"full"``.
        file: ``"sd_v1"``, ``"clip"``, ``"odise_label"`` or ``"odise_caption"``.
    """
    return {k: tuple(v) for k, v in key_lists()[f"{size}/{file}"].items()}


def parameter(key: str, shape: tuple[int, ...], size: str) -> np.ndarray:
    """Return the random float32 value of a parameter, which depends on its key in the file."""
    return draw_parameter(key, shape, _EXCEPTIONS, _SALTS[size].get(key, ""))


def draw_parameter(
    key: str,
    shape: tuple[int, ...],
    exceptions: tuple[tuple[str, str, float], ...],
    salt: str,
) -> np.ndarray:
    """Draw a parameter by the rule of the recordings.

    Args:
        key: of the parameter in its file.
        shape: of the parameter.
        exceptions: pattern of keys, kind and number, see ``_EXCEPTIONS``; the first match counts.
        salt: added to the key before it becomes the seed.
    """
    f32 = np.float32
    kind, factor = "rule", None
    for pattern, how, number in exceptions:
        if re.search(pattern, key):
            kind, factor = how, f32(number)
            break
    if kind == "value":
        return np.full(shape, factor, dtype=f32)
    seed = zlib.crc32((key + salt).encode()) & 0xFFFFFFFF
    z = np.asarray(np.random.RandomState(seed).standard_normal(size=shape)).astype(f32)
    if kind == "rule":
        if len(shape) >= 2:
            z /= f32(np.sqrt(z.size / shape[0]))
        else:
            z *= f32(0.1)
            if key.endswith("weight"):
                z += f32(1)
    if factor is not None:
        z *= factor
    return z


def iter_parameters(size: str, file: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the parameters of a file one by one; the full size has 1.07 billion numbers."""
    for key, shape in shapes(size, file).items():
        yield key, parameter(key, shape, size)


def state_dict(size: str, file: str) -> dict[str, torch.Tensor]:
    """Return the parameters of a file as float32 tensors on the CPU, without buffers."""
    return {key: torch.from_numpy(value) for key, value in iter_parameters(size, file)}


def sd_buffers() -> dict[str, torch.Tensor]:
    """Return the buffers of original Stable Diffusion files: schedule and position ids."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    abar = np.cumprod(1.0 - betas)
    prev = np.append(1.0, abar[:-1])
    variance = betas * (1.0 - prev) / (1.0 - abar)
    values = {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": prev,
        "sqrt_alphas_cumprod": np.sqrt(abar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - abar),
        "log_one_minus_alphas_cumprod": np.log(1.0 - abar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / abar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / abar - 1.0),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(prev) / (1.0 - abar),
        "posterior_mean_coef2": (1.0 - prev) * np.sqrt(1.0 - betas) / (1.0 - abar),
    }
    out = {k: torch.from_numpy(v.astype(np.float32)) for k, v in values.items()}
    position_ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    out[position_ids] = torch.arange(77).unsqueeze(0)
    return out


def _stream_safetensors(path: Path, size: str, file: str, extra: dict[str, torch.Tensor]) -> None:
    # The safetensors library needs all tensors in memory. The format is a length, a JSON header and
    # the raw numbers, so the 4 GB of the full size can be written tensor by tensor.
    names = {torch.float32: "F32", torch.int64: "I64"}
    header: dict[str, Any] = {}
    end = 0
    for key, shape in shapes(size, file).items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    for key, value in extra.items():
        start, end = end, end + value.numel() * value.element_size()
        header[key] = {
            "dtype": names[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for _, array in iter_parameters(size, file):
            stream.write(array.tobytes())
        for value in extra.values():
            stream.write(value.numpy().tobytes())


def _write(
    path: str | Path, size: str, file: str, level: str | None, extra: dict[str, torch.Tensor]
) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        _stream_safetensors(path, size, file, extra)
    else:
        state = {**state_dict(size, file), **extra}
        torch.save(state if level is None else {level: state}, path)
    return path


def write_sd(path: str | Path, size: str) -> Path:
    """Write Stable Diffusion v1 in its original format, with the schedule and ``position_ids``.

    As in the distributed files, ``.safetensors`` files are flat, and others have the dictionary
    under ``state_dict``.
    """
    return _write(path, size, "sd_v1", "state_dict", sd_buffers())


def write_clip(path: str | Path, size: str) -> Path:
    """Write CLIP with open_clip's parameter names to a flat ``.safetensors`` or torch file."""
    return _write(path, size, "clip", None, {})


def write_odise(path: str | Path, size: str, variant: str) -> Path:
    """Write an ODISE checkpoint in the released format, with the weights under ``model``.

    Args:
        path: file to write.
        size: ``"tiny"`` or ``"full"``.
        variant: ``"label"`` or ``"caption"``.
    """
    (count,) = key_lists()[f"{size}/odise_{variant}_buffers"]["criterion.empty_weight"]
    empty_weight = torch.ones(count)
    empty_weight[-1] = 0.1
    extra = {"criterion.empty_weight": empty_weight}
    return _write(path, size, f"odise_{variant}", "model", extra)


def write_all(folder: str | Path, size: str) -> Path:
    """Write ``sd_v1.ckpt``, ``clip.pt``, ``odise_label.pth`` and ``odise_caption.pth``.

    The full-size diffusion model is written to ``sd_v1.safetensors``, which needs little memory.
    """
    folder = Path(folder)
    write_sd(folder / ("sd_v1.ckpt" if size == "tiny" else "sd_v1.safetensors"), size)
    write_clip(folder / "clip.pt", size)
    for variant in ("label", "caption"):
        write_odise(folder / f"odise_{variant}.pth", size, variant)
    return folder


# ------------------------------------------------------------------------------- cases


def full_folder() -> Path | None:
    """Return the folder of the complete recordings; None if ``ODISE_GOLDEN_DIR`` is not set."""
    value = os.environ.get(ENV_FOLDER)
    return Path(value) if value else None


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, Any]:
    """Return ``labels`` (12 lists of synonyms), ``thing_ids``, ``seen`` (in COCO), ``out_hw``."""
    return json.loads((DATA / "inputs.json").read_text())


def weights_check(size: str) -> dict[str, np.ndarray]:
    """Return recorded values of parameters, the noise, and the embedding of the empty prompt.

    For each parameter, the first eight values and the float64 sum are recorded.

    Raises:
        FileNotFoundError: ``size`` is ``"full"`` and ``ODISE_GOLDEN_DIR`` is not set.
    """
    if size == "tiny":
        path = DATA / "tiny_weights_check.npz"
    else:
        path = _in_full_folder("full_weights_check_label.npz")
    with np.load(path) as data:
        return {k: data[k] for k in data.files}


def _in_full_folder(name: str) -> Path:
    folder = full_folder()
    if folder is None:
        raise FileNotFoundError(f"{name} is only in the complete recordings: set {ENV_FOLDER}")
    return folder / name


def parse_name(name: str, shape: tuple[int, ...], full: tuple[int, ...] | None) -> tuple[str, dict]:
    """Parse the name of an array in a complete recording.

    Args:
        name: name of the array.
        shape: shape of the array.
        full: shape before subsampling, if it was recorded.

    Returns:
        Name of the stage, and ``{"steps": stride of every axis, "half": stored in float16}``.
    """
    half = name.endswith("_f16")
    stage = name.removesuffix("_f16")
    step = 1
    if match := re.search(r"_n(\d+)$", stage):
        stage, limit = stage[: match.start()], int(match[1])
        # Maps whose shape was not recorded have at least `limit` rows left.
        heights = {"mask_features": 128, "multi_scale_0": 16, "multi_scale_1": 32}
        height = full[-2] if full is not None else heights.get(stage, 64)
        step = max(1, int(height) // limit)
    elif match := re.search(r"_s([28])$", stage):
        # This does not match stages such as backbone_s2: their names continue with _nN.
        stage, step = stage[: match.start()], int(match[1])
    steps = [1] * len(shape)
    if step > 1:
        steps[-2:] = [step, step]
    return stage, {"steps": steps, "half": half}


@dataclass
class GoldenCase:
    """Recorded stages of the published model on one image.

    Attributes:
        name: ``{size}_{variant}_{input}``.
        image: (H, W, 3) uint8 RGB.
        out_hw: height and width of the results.
        arrays: recorded arrays by stage, subsampled as given by ``index``.
        index: for every stage, ``{"steps": stride of every axis, "half": stored in float16}``.
    """

    name: str
    image: np.ndarray
    out_hw: tuple[int, int]
    arrays: dict[str, np.ndarray]
    index: dict[str, dict] = field(repr=False)

    @property
    def size(self) -> str:
        return self.name.split("_")[0]

    @property
    def variant(self) -> str:
        return self.name.split("_")[1]

    @property
    def stages(self) -> list[str]:
        return list(self.arrays)

    def __contains__(self, stage: str) -> bool:
        return stage in self.arrays

    def __getitem__(self, stage: str) -> np.ndarray:
        return self.arrays[stage]

    def segments(self, stage: str = "segments_info") -> list[dict]:
        """Return recorded segments; stages that end in ``_ot03`` have the overlap threshold 0.3."""
        return json.loads(str(self.arrays[stage]))

    def sample(self, stage: str, tensor: torch.Tensor | np.ndarray) -> np.ndarray:
        """Subsample a tensor like the recording and add or remove batch axes of length one."""
        steps, want = self.index[stage]["steps"], self.arrays[stage]
        if isinstance(tensor, torch.Tensor):
            tensor = tensor.detach().cpu()
            tensor = (tensor.double() if tensor.is_floating_point() else tensor).numpy()
        while tensor.ndim > want.ndim and tensor.shape[0] == 1:
            tensor = tensor[0]
        while tensor.ndim < want.ndim:
            tensor = tensor[None]
        out = tensor[tuple(slice(None, None, s) for s in steps)]
        assert out.shape == want.shape, (
            f"{self.name}/{stage}: shape {tuple(tensor.shape)} subsampled by {steps} is "
            f"{out.shape}, but the recording has {want.shape}"
        )
        return out

    def _difference(self, stage: str, tensor: torch.Tensor | np.ndarray) -> np.ndarray:
        want = self.arrays[stage].astype(np.float64)
        difference = np.abs(self.sample(stage, tensor).astype(np.float64) - want)
        if self.index[stage]["half"]:
            # Ignore the rounding of the recording to float16: half a unit in the last place, which
            # is 2^-11 relative.
            difference = np.maximum(difference - np.maximum(np.abs(want) * 2.0**-11, 2.0**-25), 0)
        scale = want.std() if want.size > 1 else 0.0
        difference /= scale if scale > 0 else max(float(np.abs(want).max()), 1e-12)
        return np.where(np.isfinite(difference), difference, np.inf)

    def error(self, stage: str, tensor: torch.Tensor | np.ndarray) -> float:
        """Return the largest difference over the recording's deviation; inf if not finite."""
        return float(self._difference(stage, tensor).max())

    def compare(
        self, stage: str, tensor: torch.Tensor | np.ndarray, rtol: float | None = 1e-3
    ) -> float:
        """Return :meth:`error` and assert that it is at most ``rtol``, unless this is None."""
        error = self.error(stage, tensor)
        assert rtol is None or error <= rtol, f"{self.name}/{stage}: {error:.3g} > {rtol:.3g}"
        return error

    def compare_queries(
        self,
        stage: str,
        tensor: torch.Tensor | np.ndarray,
        rtol: float = 1e-3,
        allowed: int = 3,
        queries: int = 100,
    ) -> tuple[int, float]:
        """Compare query by query and allow a few of them to differ.

        Masked attention and pooling use hard thresholds, so a mask value very close to 0.5 can
        change a query. Therefore, up to ``allowed`` of the ``queries`` may exceed ``rtol``.

        Returns:
            Number of queries that differ, and the largest error of the others.
        """
        difference = self._difference(stage, tensor)
        axis = difference.shape.index(queries)
        per_query = np.moveaxis(difference, axis, 0).reshape(queries, -1).max(axis=1)
        bad = per_query > rtol
        worst = float(per_query[~bad].max()) if not bad.all() else float("inf")
        assert bad.sum() <= allowed, (
            f"{self.name}/{stage}: {bad.sum()} of {queries} queries differ by more than "
            f"{rtol:.3g} (largest {per_query.max():.3g}, queries {np.flatnonzero(bad).tolist()})"
        )
        return int(bad.sum()), worst

    def agreement(self, stage: str, tensor: torch.Tensor | np.ndarray) -> float:
        """Return the fraction of equal entries in a label map such as ``panoptic_seg``."""
        return float((self.sample(stage, tensor) == self.arrays[stage]).mean())


def _read_full(path: Path) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    arrays, index = {}, {}
    with np.load(path) as data:
        for name in data.files:
            if name.endswith("_shape"):
                continue
            array = data[name]
            base = re.sub(r"_n\d+$", "", name)
            full = tuple(data[f"{base}_shape"]) if f"{base}_shape" in data.files else None
            stage, how = parse_name(name, array.shape, full)
            arrays[stage], index[stage] = array, how
    return arrays, index


def load_case(name: str, folder: str | Path | None = None) -> GoldenCase:
    """Load a recorded case.

    Args:
        name: one of :data:`CASES`, or a case that only exists in the complete recordings
            (``"full_label_512x512"``).
        folder: folder of complete recordings. The default is ``tests/data``, or for cases that are
            not there, the folder in ``ODISE_GOLDEN_DIR``.

    Raises:
        FileNotFoundError: the case does not exist.
    """
    shape_name = name.rsplit("_", 1)[1]
    thin = DATA / f"{name}.npz"
    if folder is None and thin.is_file():
        with np.load(thin) as data:
            arrays = {k: data[k] for k in data.files}
        index = json.loads(str(arrays.pop("index")))
    else:
        path = Path(folder) / f"{name}.npz" if folder else _in_full_folder(f"{name}.npz")
        arrays, index = _read_full(path)
    image = np.asarray(Image.open(DATA / f"image_{shape_name}.png"))
    out_h, out_w = vocabulary()["out_hw"][shape_name]
    return GoldenCase(name, image, (out_h, out_w), arrays, index)


def load_postproc(name: str, folder: str | Path | None = None) -> dict[str, np.ndarray]:
    """Load the inputs and results of the published post-processing functions.

    Keys are ``mask_cls`` (Q, K + 1) logits, ``mask_pred`` (Q, H, W) logits, ``panoptic_seg``,
    ``segments_info`` (JSON), ``sem_seg_argmax``, ``inst_scores_sorted`` and so on.

    Args:
        name: one of :data:`POSTPROC_CASES`. ``tests/data`` contains only some of them.
        folder: folder of the complete recordings, which contain all cases.

    Raises:
        FileNotFoundError: the case does not exist.
    """
    path = Path(folder) / "postproc.npz" if folder else DATA / "postproc.npz"
    with np.load(path) as data:
        out = {k[len(name) + 1 :]: data[k] for k in data.files if k.startswith(f"{name}_")}
    if not out:
        raise FileNotFoundError(f"{path} has no case {name}")
    if "sem_seg" in out:
        out["sem_seg_argmax"] = out["sem_seg"].argmax(0)
    return {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in out.items()}


def load_arrays(name: str) -> dict[str, np.ndarray]:
    """Load all arrays of ``tests/data/{name}.npz``."""
    with np.load(DATA / f"{name}.npz") as data:
        return {key: data[key] for key in data.files}
