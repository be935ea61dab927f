"""Writes a segmentor as a graph, with a description of its inputs and outputs and a NumPy merge."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmcv.transforms import Compose
from mmdet.structures import DetDataSample
from mmengine.logging import print_log
from torch import Tensor, nn

from odise_mm.datasets.transforms import ResizeKeepRatio
from odise_mm.errors import ConfigError, OutputError
from odise_mm.export import results
from odise_mm.export.graph_form import graph_form
from odise_mm.export.names import NameInputs, classes_of
from odise_mm.export.readme import README_FILE, readme_of
from odise_mm.models.classifiers.base import NameTensors
from odise_mm.models.segmentors.base_segmentor import BaseSegmentor
from odise_mm.models.segmentors.results import SegmentedImages
from odise_mm.utils.display import printable
from odise_mm.utils.files import write_json, write_text
from odise_mm.vocabulary import Vocabulary

FORMATS = {"onnx": "model.onnx", "torch": "model.pt2"}
"""Formats, and the file that each writes."""

NAMES = ("baked", "input")
"""Whether class names are constants of the graph, or inputs."""

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""Packages of the extra ``export``."""

OUTPUTS = ("masks", "probabilities")
DESCRIPTION_FILE = "model.json"
RESULTS_FILE = "results.py"
TOLERANCE = 1e-3
"""Largest difference between a graph and PyTorch that is no error, for random images."""

_MOST = 128  # largest dynamic height and width, in multiples of the divisor
_OPSET = 18  # the first with all operators: ScatterElements with max, Resize with antialiasing

Size = tuple[int, int]


@dataclass(frozen=True)
class Exported:
    """What :func:`export_model` has written.

    Attributes:
        files: all files in the folder, those of the graphs first.
        differences: for each format and output, the largest absolute difference between the graph
            and PyTorch. ONNX Runtime runs the graph of ONNX.
    """

    files: tuple[Path, ...]
    differences: dict[str, dict[str, float]]


def export_model(
    model: BaseSegmentor,
    folder: str | os.PathLike[str],
    formats: Sequence[str] = ("onnx",),
    vocabulary: Vocabulary | None = None,
    image_size: Size | None = (1024, 1024),
    names: str = "baked",
    scale: Size | None = None,
) -> Exported:
    """Export a segmentor, and compare the result with PyTorch.

    The graph computes mask logits and class probabilities of one image. The class probabilities
    are those of the ensemble. ``results.py``, which is written beside the graph and needs only
    NumPy, prepares the image and merges the masks. ``README.md`` has an example.

    The steps are logged, as they take minutes for large models.

    Args:
        model: the segmentor, on the CPU, with precision ``fp32``.
        folder: folder for the files; created if it is missing. Files of the same names are
            replaced.
        formats: any of :data:`FORMATS`.
        vocabulary: the classes; None means the model's vocabulary.
        image_size: height and width of the images in pixels. None makes both dynamic, for models
            whose graph does not depend on them.
        names: ``baked`` makes the class names constants. ``input`` makes their embeddings inputs;
            ``names.npz`` holds those of ``vocabulary``.
        scale: for a dynamic image size, the largest long and short edge of images in pixels, to
            which ``results.input_size`` fits them; see :func:`scale_of`. None: no limit.

    Returns:
        The files, and the differences between the graph and PyTorch.

    Raises:
        ConfigError: a setting is not allowed, or the model cannot be exported with it.
        OutputError: a file cannot be written.
    """
    _check_settings(model, formats, image_size, names)
    vocabulary = model.vocabulary if vocabulary is None else vocabulary
    texts = NameInputs.of(model, vocabulary)
    divisor = _divisor(model)
    size = image_size or (2 * divisor, 3 * divisor)
    _log("recording the operations of the model")
    network = _Network(model.eval(), vocabulary, texts, size, names)
    inputs = network.example(size, divisor)
    with texts.used(model), graph_form(model), torch.no_grad():
        network(*inputs.values())  # fills caches, which the graph must not contain
        program = _trace(network, inputs, image_size is None, divisor)
    # With other numbers than the traced ones, and at another size if any is allowed.
    if image_size is None:
        size = (3 * divisor, 2 * divisor)
    inputs = network.example(size, divisor, seed=1)
    with texts.used(model), torch.no_grad(), network.at(image_size and size):
        expected = network(*inputs.values())

    folder = Path(folder).expanduser()
    files: list[Path] = []
    differences: dict[str, dict[str, float]] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for format in formats:
            path = folder / FORMATS[format]
            found: Sequence[Tensor]
            if format == "onnx":
                _log(f"converting {len(program.graph.nodes):,} operations to ONNX")
                files += _write_onnx(program, list(inputs), path)
                _log("comparing ONNX Runtime with PyTorch")
                found = _run_onnx(path, inputs)
            else:
                _log("writing the program of torch.export, and comparing it with PyTorch")
                torch.export.save(program, path)
                files.append(path)
                found = torch.export.load(path).module()(*inputs.values())
            differences[format] = _differences(expected, found)
        content = _describe(network, inputs, image_size, divisor, names, scale)
        write_json(folder / DESCRIPTION_FILE, content, indent=1)
        shutil.copyfile(results.__file__, folder / RESULTS_FILE)
        write_text(folder / README_FILE, readme_of(content, formats))
        files += [folder / name for name in (DESCRIPTION_FILE, RESULTS_FILE, README_FILE)]
        if names == "input":
            files.append(texts.write(folder))
    except OSError as error:
        raise OutputError(f"cannot write to {printable(folder)}: {error.strerror}") from error
    return Exported(tuple(files), differences)


def scale_of(pipeline: Compose) -> Size | None:
    """Return the ``scale`` to which a test pipeline resizes images, or None."""
    steps = pipeline.transforms
    return next((step.scale for step in steps if isinstance(step, ResizeKeepRatio)), None)


def _log(text: str) -> None:
    print_log(f"Export: {text}", logger="current")


class _Network(nn.Module):
    """From an image, and possibly names, to masks and class probabilities."""

    def __init__(
        self,
        model: BaseSegmentor,
        vocabulary: Vocabulary,
        texts: NameInputs,
        image_size: Size,
        names: str,
    ) -> None:
        super().__init__()
        self.model = model
        self.vocabulary = vocabulary
        self.texts = texts
        self.image_size: Size | None = image_size
        self.names = names
        self.frame: list[list[int]] | None = None

    @contextmanager
    def at(self, size: Size | None) -> Iterator[None]:
        """Set the size of the image inside its padding; None: there is no padding."""
        before, self.image_size = self.image_size, size
        yield
        self.image_size = before

    def example(self, size: Size, divisor: int, seed: int = 0) -> dict[str, Tensor]:
        """Return inputs: a random image and the names."""
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(1, 3, 5, 7, generator=generator)
        padded = [-(-side // divisor) * divisor for side in size]
        image = nn.functional.interpolate(coarse, padded, mode="bicubic").clamp(0, 1)
        return {"image": image} | (self.texts.arrays if self.names == "input" else {})

    def forward(self, image: Tensor, *names: Tensor) -> tuple[Tensor, Tensor]:
        """Segment an image.

        Args:
            image: (1, 3, H, W) in [0, 1], RGB, padded at bottom and right.
            names: values of :attr:`NameInputs.arrays`, in their order, or nothing.

        Returns:
            Mask logits (1, Q, h, w), and probabilities of the classes and void, (1, Q, K + 1).
        """
        arrays, vocabulary = self.texts.arrays, self.vocabulary
        if names:
            arrays = dict(zip(arrays, names, strict=True))
            vocabulary = NameTensors(arrays["class_of_synonym"], arrays["base"])
        samples = None
        if self.image_size is not None:
            info = {"img_shape": self.image_size, "pad_shape": tuple(image.shape[-2:])}
            samples = [DetDataSample(metainfo=info)]
        found: SegmentedImages
        self.texts.current = arrays
        (found,) = self.model.segment(image, samples, vocabulary)
        joined = self.model.ensemble(found.class_predictions, vocabulary)
        if found.prediction.frames is not None:
            self.frame = [list(map(int, part)) for part in found.prediction.frames[0]]
        return found.prediction.masks.float(), joined


def _check_settings(
    model: BaseSegmentor, formats: Sequence[str], size: Size | None, names: str
) -> None:
    if isinstance(formats, str) or not formats or not set(formats) <= set(FORMATS):
        raise ConfigError(f"formats={formats!r} must be a list of {', '.join(FORMATS)}")
    if names not in NAMES:
        raise ConfigError(f"names={names!r} is not one of {', '.join(NAMES)}")
    if size is not None and min(size) < 1:
        raise ConfigError(f"an image size must be positive, got {size[0]} x {size[1]}")
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if "onnx" in formats and missing:
        raise ConfigError(
            f"export to onnx needs {', '.join(missing)}: pip install 'odise_mm[export]'"
        )
    if model.precision != "fp32" or next(model.parameters()).device.type != "cpu":
        raise ConfigError("only models on the CPU with precision fp32 can be exported")
    reason = why_not(model, size is None)
    if reason is not None:
        raise ConfigError(reason)


def why_not(model: BaseSegmentor, dynamic: bool) -> str | None:
    """Return why a model cannot be exported, or None.

    Args:
        model: the segmentor.
        dynamic: whether the image size would be dynamic.
    """
    from odise_mm.models import CropCLIPClassifier, MemoryClassifier, PooledCLIPClassifier
    from odise_mm.models.necks.captioners.text import TextCaptioner
    from odise_mm.models.proposals.segmentor_proposals import SegmentorProposals

    source = getattr(model, "proposals", None)
    if source is not None and not isinstance(source, SegmentorProposals):
        return (
            f"{type(source).__name__} finds a different number of masks in each image, which a "
            "graph cannot do: export a model with a head of its own"
        )
    if any(isinstance(part, CropCLIPClassifier) for part in model.modules()):
        return (
            "CropCLIPClassifier cuts boxes of any size out of the image, which a graph cannot do: "
            "use MaskCLIPClassifier"
        )
    if any(isinstance(part, MemoryClassifier) for part in model.modules()):
        return (
            "MemoryClassifier searches a memory that can change at any time, which a graph cannot "
            "do: export a model that was not given a memory"
        )
    for part in model.modules():
        if isinstance(part, TextCaptioner):
            return (
                f"{type(part).__name__} uses a sentence for each image, which a graph cannot do: "
                "use ImplicitCaptioner or EmptyCaptioner"
            )
    if not dynamic:
        return None
    advice = "give the size of the images"
    if source is not None or getattr(model, "tile_size", None) is not None:
        return f"the steps of this model depend on the image size: {advice}"
    for part in getattr(model, "classifiers", ()):
        if getattr(part, "clip", None) is None:
            continue
        if not (isinstance(part, PooledCLIPClassifier) and part.reads_features):
            return (
                f"{type(part).__name__} resizes the image without its padding, so the graph "
                f"depends on the image size: {advice}"
            )
    return None


def _divisor(model: BaseSegmentor) -> int:
    return int(getattr(model.data_preprocessor, "pad_size_divisor", 1))


def _trace(
    network: _Network, inputs: dict[str, Tensor], dynamic: bool, divisor: int
) -> torch.export.ExportedProgram:
    sides: dict[int, Any] = {}
    if dynamic:
        network.image_size = None
        sides = {
            axis: divisor * torch.export.Dim(name, min=1, max=_MOST)
            for axis, name in ((2, "height"), (3, "width"))
        }
    shapes: tuple[Any, ...] = (sides,)
    if network.names == "input":
        synonyms, classes = (torch.export.Dim(name, min=2) for name in ("synonyms", "classes"))
        matrices = [{0: synonyms} for name in inputs if name.startswith("names_")]
        shapes += ((*matrices, {0: synonyms}, {0: classes}),)  # the names are variadic
    return torch.export.export(network, tuple(inputs.values()), dynamic_shapes=shapes, strict=False)


def _write_onnx(program: torch.export.ExportedProgram, names: list[str], path: Path) -> list[Path]:
    """Write the graph and return its files: one, or two if the weights exceed 1 GiB."""
    with _quiet("onnxscript", "onnx_ir"):
        from onnxscript import optimizer

        exported = torch.onnx.export(
            program,
            input_names=names,
            output_names=list(OUTPUTS),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
            optimize=False,
        )
        # The other steps of its optimizer take two thirds of the time, make no graph faster, and
        # change numbers: they drop sums with constants of up to 1e-8.
        optimizer.inline(exported.model)
        optimizer.fold_constants_ir(exported.model)
        optimizer.remove_unused_nodes(exported.model)
    weights = path.with_name(path.name + ".data")
    weights.unlink(missing_ok=True)
    large = sum(value.nbytes for value in program.state_dict.values()) > 2**30
    exported.save(path, external_data=large)
    return [path, weights] if large else [path]


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Let loggers show only errors."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _run_onnx(path: Path, inputs: dict[str, Tensor]) -> Sequence[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feed = {name: inputs[name].numpy() for name in names}
    return [torch.from_numpy(value) for value in session.run(list(OUTPUTS), feed)]


def _differences(expected: Sequence[Tensor], found: Sequence[Tensor]) -> dict[str, float]:
    return {
        # NaN in both is no difference, but in one of them it is.
        name: float((a - b).detach().abs().nan_to_num(torch.inf).max())
        for name, a, b in zip(OUTPUTS, expected, found, strict=True)
    }


def _describe(
    network: _Network,
    inputs: dict[str, Tensor],
    image_size: Size | None,
    divisor: int,
    names: str,
    scale: Size | None,
) -> dict[str, Any]:
    """Return the content of ``model.json``."""
    model, vocabulary = network.model, network.vocabulary
    preprocessor = model.data_preprocessor
    color = getattr(preprocessor, "pad_color", None)
    if color is None:
        color = (float(getattr(preprocessor, "pad_value", 0)),) * 3
    settings = ("score_threshold", "overlap_threshold", "min_area", "mask_resize")
    return dict(
        inputs={name: str(value.dtype).removeprefix("torch.") for name, value in inputs.items()},
        outputs=list(OUTPUTS),
        image_size=None if image_size is None else list(image_size),
        scale=None if scale is None else [max(scale), min(scale)],
        divisor=divisor,
        pad_color=list(color),
        mask_frame=network.frame,
        names=names,
        classes=classes_of(vocabulary),
        settings={name: model.test_cfg[name] for name in settings},
        versions=dict(torch=torch.__version__),
    )
