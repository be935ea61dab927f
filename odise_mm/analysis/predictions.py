"""Folders with a model's saved predictions on a test set, before the ensemble.

One ``.npz`` file per image holds the mask logits at stride 4, every classifier's prediction and the
image's metainfo. The files contain no pickles, so reading them runs no code. ``set.json`` describes
the run that made the predictions, and ``config.json`` is its test config.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odise_mm.errors import OdiseError
from odise_mm.models import OpenVocabSegmentor
from odise_mm.models.classifiers.base import ClassPrediction
from odise_mm.utils.display import printable
from odise_mm.utils.files import read_json, replacing, write_json
from odise_mm.utils.old_keys import rename_recorded_keys

FORMAT = 2
_FIELDS = ("logits", "p_void", "valid", "abstains", "relative")
MASK_TYPES = {"fp16": torch.float16, "fp32": torch.float32}
# Entries of set.json that a sweep's numbers depend on; equal for all images of a folder.
_SAME = ("format", "model", "pipeline", "dataset", "checkpoint", "precision", "masks", "vocabulary")
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


class PredictionsError(OdiseError):
    """A folder of predictions is missing, incomplete, damaged, or belongs to another run."""


@dataclass
class Prediction:
    """A model's prediction on one image, before the ensemble.

    Attributes:
        metainfo: Metainfo of the image's data sample.
        masks: Mask logits over the padded image at stride 4, (Q, h, w).
        class_predictions: Every classifier's prediction, as a batch of one image.
    """

    metainfo: dict[str, Any]
    masks: Tensor
    class_predictions: list[ClassPrediction]


@torch.no_grad()
def predict_each_classifier(
    model: OpenVocabSegmentor, batch: Mapping[str, Any]
) -> list[Prediction]:
    """Predict the masks and every classifier's classes of a batch, without making results.

    Args:
        model: Model in eval mode; its vocabulary is used.
        batch: Batch from a data loader, with ``inputs`` and ``data_samples``.

    Returns:
        A prediction for every image, in the order of the batch.

    Raises:
        FloatingPointError: Masks or probabilities are not finite.
    """
    data = model.data_preprocessor(batch, False)
    samples = data["data_samples"]
    predictions: dict[int, Prediction] = {}
    for found in model.segment(data["inputs"], samples):
        model.probabilities(found)  # raises if they are not finite
        for i, place in enumerate(found.places):
            class_predictions = [
                _of_image(class_prediction, i) for class_prediction in found.class_predictions
            ]
            metainfo = dict(samples[place].metainfo)
            if found.prediction.frames is not None:  # the masks cover another area than the image
                padded, image = found.prediction.frames[i]
                metainfo |= dict(pad_shape=tuple(padded), img_shape=tuple(image))
            predictions[place] = Prediction(metainfo, found.prediction.masks[i], class_predictions)
    return [predictions[place] for place in range(len(samples))]


def _of_image(class_prediction: ClassPrediction, index: int) -> ClassPrediction:
    """Select one image of a batch, as a batch of one."""
    one = slice(index, index + 1)
    return ClassPrediction(*(None if field is None else field[one] for field in class_prediction))


class PredictionFolder:
    """Reader and writer of a folder of predictions.

    Args:
        path: Folder of one test set.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def begin(self, description: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Create the folder, or continue one of the same run.

        Args:
            description: Description of the run. Of its entries, those in ``_SAME`` must equal the
                ones of an existing folder.
            config: The test config.

        Raises:
            PredictionsError: The folder holds predictions of another run, or other files.
        """
        described = _as_json({**description, "format": FORMAT})
        if (self.path / "set.json").exists():
            before = self.describe()
            other = [key for key in _SAME if before.get(key) != described.get(key)]
            if other:
                raise PredictionsError(
                    f"{self.path} holds predictions of another run (different: "
                    f"{', '.join(other)}); use another folder or remove this one"
                )
        elif (self.path / "config.json").exists() or self.file(0).exists():
            raise PredictionsError(
                f"{printable(self.path)} contains other files with the names of predictions; use "
                "another folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._write_json("set.json", described)
        self._write_json("config.json", _as_json(config))

    def describe(self) -> dict[str, Any]:
        """Return the description of the run that made the predictions.

        Raises:
            PredictionsError: This is not a folder of predictions, or has another format.
        """
        described = self._read_json("set.json")
        if described.get("format") != FORMAT:
            raise PredictionsError(
                f"{self.path} has format {described.get('format')}, but this version reads "
                f"{FORMAT}; save the predictions again"
            )
        return described

    def config(self) -> dict[str, Any]:
        """Return the test config that the predictions were made with."""
        return self._read_json("config.json")

    def file(self, index: int) -> Path:
        """Return the path of the file for the dataset's image ``index``."""
        return self.path / f"{index:07d}.npz"

    def missing(self, count: int) -> list[int]:
        """List those of the first ``count`` images that have no file yet.

        A file appears only when it is complete.
        """
        return [index for index in range(count) if not self.file(index).exists()]

    def write(self, index: int, prediction: Prediction, masks: str) -> int:
        """Write the file of one image.

        Args:
            index: Index of the image in the dataset.
            prediction: The prediction to write.
            masks: Precision of the mask logits, "fp16" (clipped to its range) or "fp32". All other
                numbers are stored in float32.

        Returns:
            Size of the file in bytes.
        """
        logits = prediction.masks.float()
        if masks == "fp16":
            largest = torch.finfo(torch.float16).max
            logits = logits.clamp(-largest, largest)
        logits = logits.to(MASK_TYPES[masks]).cpu().contiguous().numpy()
        metainfo = json.dumps(_as_json(prediction.metainfo), ensure_ascii=False)
        arrays = {
            "metainfo": np.frombuffer(metainfo.encode(), np.uint8),
            "shape": np.array(logits.shape, np.int64),
            # All high bytes, then all low bytes: similar bytes next to each other compress better.
            "masks": logits.view(np.uint8).reshape(-1, logits.itemsize).T,
        }
        for i, class_prediction in enumerate(prediction.class_predictions):
            for field, value in class_prediction._asdict().items():
                if value is not None:
                    dtype = torch.bool if value.dtype == torch.bool else torch.float32
                    arrays[f"{field}_{i}"] = value[0].to(dtype).cpu().numpy()
        target = self.file(index)
        with replacing(target, durable=False) as temporary:
            _write_npz(temporary, arrays)
        return target.stat().st_size

    def read(self, index: int) -> Prediction:
        """Read the prediction on one image, with masks in float32.

        Args:
            index: Index of the image in the dataset.

        Raises:
            PredictionsError: The file is missing or damaged.
        """
        path = self.file(index)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                metainfo = json.loads(arrays["metainfo"].tobytes().decode())
                planes = arrays["masks"]
                dtype = {2: np.float16, 4: np.float32}[len(planes)]
                logits = np.ascontiguousarray(planes.T).view(dtype).reshape(arrays["shape"])
                class_predictions = []
                while f"logits_{len(class_predictions)}" in arrays:
                    names = {name: f"{name}_{len(class_predictions)}" for name in _FIELDS}
                    found = {
                        name: torch.from_numpy(arrays[key])[None]
                        for name, key in names.items()
                        if key in arrays
                    }
                    class_predictions.append(ClassPrediction(**found))
        except FileNotFoundError as err:
            raise PredictionsError(f"no file {path}; save the predictions again") from err
        except _DAMAGED as err:
            raise PredictionsError(
                f"{path} is damaged ({err}); remove it and save the predictions again (images that "
                "are already saved are not run again)"
            ) from err
        return Prediction(
            {key: _tuple(value) for key, value in metainfo.items()},
            torch.from_numpy(logits.astype(np.float32)),
            class_predictions,
        )

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        if not path.exists():
            raise PredictionsError(
                f"no file {path}; pass the folder of one test set that "
                "tools/analysis_tools/save_predictions.py wrote"
            )
        try:
            content = read_json(path, PredictionsError, "settings file")
        except PredictionsError as err:
            raise PredictionsError(
                f"{path} is damaged ({err}); save the predictions again"
            ) from err
        if not isinstance(content, dict):
            raise PredictionsError(
                f"{path} is damaged (not a JSON object); save the predictions again"
            )
        return rename_recorded_keys(content)

    def _write_json(self, name: str, content: Any) -> None:
        write_json(self.path / name, content, indent=1)


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays like numpy's ``savez_compressed``, at the fastest compression level."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(
                    stream, np.ascontiguousarray(array), allow_pickle=False
                )  # fmt: skip


def _as_json(value: Any) -> Any:
    """Convert a value to JSON types; values of other types are converted to strings."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, (np.integer, np.floating)):
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _tuple(value: Any) -> Any:
    """Convert lists of numbers to tuples: sizes are tuples, which JSON does not have."""
    if isinstance(value, list) and all(isinstance(item, (int, float)) for item in value):
        return tuple(value)
    return value
