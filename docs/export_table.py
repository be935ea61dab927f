"""Export small models, and write what was found into the table of docs/export.md.

Usage: python docs/export_table.py [MODEL ...]

Without names, all of :data:`MODELS` are exported, which takes about half an hour. The rows of other
models stay as they are. Needs ``pip install 'odise_mm[export]' openvino``. Models of published
methods have the random weights of the tests.
"""

from __future__ import annotations

import argparse
import logging
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import openvino
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from odise_mm import OpenVocabInferencer  # noqa: E402
from odise_mm.config.building import build_model  # noqa: E402
from odise_mm.config.finding import load_config  # noqa: E402
from odise_mm.errors import ConfigError  # noqa: E402
from odise_mm.export import export_model  # noqa: E402
from odise_mm.models.random_weights import fill_with_random_weights  # noqa: E402
from tests.support import golden_families, golden_maskclippp  # noqa: E402

PAGE = ROOT / "docs/export.md"
PLACE = re.compile(r"(<!-- export table -->\n).*?(<!-- end of table -->)", re.DOTALL)
COLUMNS = (
    "model",
    "image size",
    "exported",
    "MB",
    "CPU s",
    "difference",
    "ONNX Runtime",
    "OpenVINO, difference",
    "OpenVINO",
)
NUMERIC = 6
ROUNDS = 7
OUTPUTS = ("masks", "probabilities")
LABEL = str(ROOT / "projects/toy_world/weights/odise_label.safetensors")
CAPTION = str(ROOT / "projects/toy_world/weights/odise_caption.safetensors")

Source = tuple[str | Config, str | None]
"""Config and weights; None: random ones for the parts that are trained."""


class Model(NamedTuple):
    """A row of the table."""

    title: str
    make: Callable[[Path], Source]
    """Function of a folder for temporary files."""
    size: tuple[int, int] | None = (128, 128)
    """None: any, measured at ``measured``."""
    measured: tuple[int, int] = (128, 128)


def shipped(title: str, config: str, weights: str) -> Model:
    return Model(title, lambda _: (config, weights))


def toy(title: str, config: str) -> Model:
    return Model(title, lambda _: (f"{ROOT}/configs/toy/{config}.py", None))


def family(title: str, name: str) -> Model:
    def make(folder: Path) -> Source:
        weights = golden_families.write_checkpoint(folder / "weights.pth", name)
        return golden_families.tiny_config(name), str(weights)

    return Model(title, make, None, (256, 320))


def maskclippp(folder: Path) -> Source:
    weights = golden_maskclippp.write_checkpoint(folder / "weights.pth")
    return golden_maskclippp.tiny_config(folder), str(weights)


MODELS: dict[str, Model] = {
    "odise_tiny": Model("ODISE (`odise_tiny`)", lambda _: ("odise_tiny", None), (100, 150)),
    "label": shipped("ODISE, labels (`odise_toy_label`)", "odise_toy_label", LABEL),
    "caption": shipped("ODISE, captions (`odise_toy_caption`)", "odise_toy_caption", CAPTION),
    "fcclip": family("FC-CLIP (narrow ConvNeXt)", "fcclip"),
    "ovrcoat": family("OVRCOAT (narrow ConvNeXt)", "ovrcoat"),
    "maftplus": family("MAFT+ (narrow ConvNeXt)", "maftplus"),
    "maskclippp": Model("MaskCLIP++ (narrow ConvNeXt)", maskclippp, (256, 320)),
    "clip": toy("features of CLIP (`features/clip`)", "features/clip"),
    "vit": toy("ViT of timm (`features/vit`)", "features/vit"),
    "resnet_masks": toy("ResNet, masks of CLIP (`features/resnet_masks`)", "features/resnet_masks"),
    "resnet_captions": toy(
        "ResNet, captions (`features/resnet_captions`)", "features/resnet_captions"
    ),
    **{
        name: toy(f"ablation `{study}/{name}`", f"ablation/{study}/{name}")
        for study, names in {
            "captioner": ("empty", "heuristic", "own_caption"),
            "classification": ("both_crops", "clip_only", "diffusion_only"),
            "steps": ("learned", "t0_100_200"),
        }.items()
        for name in names
    },
}


def row_of(model: Model) -> list[str]:
    """Export a model and measure it; return the cells of its row."""
    size = "any" if model.size is None else "{} x {}".format(*model.size)
    with tempfile.TemporaryDirectory() as folder:
        network, start = build(*model.make(Path(folder))), time.process_time()
        try:
            done = export_model(network, folder, ["onnx", "torch"], image_size=model.size)
        except ConfigError as error:
            return [model.title, size, f"no: {error}", *[""] * NUMERIC]
        seconds = time.process_time() - start
        path = Path(folder) / "model.onnx"
        worst = max(max(found.values()) for found in done.differences.values())
        ratios, difference = speeds(network, path, model.size or model.measured)
        megabytes = path.stat().st_size / 1e6
    cells = [f"{megabytes:.0f}", f"{seconds:.0f}", f"{worst:.0e}", f"{ratios[0]:.2f} x"]
    return [model.title, size, "yes", *cells, f"{difference:.0e}", f"{ratios[1]:.2f} x"]


def build(config: str | Config, weights: str | None) -> Any:
    """Build a model on the CPU."""
    if weights is not None:
        return OpenVocabInferencer(config, weights, device="cpu").model
    torch.manual_seed(0)
    network = build_model(load_config(config)).eval()
    fill_with_random_weights(network, ("head", "classifiers"))
    return network


def speeds(model: Any, path: Path, size: tuple[int, int]) -> tuple[list[float], float]:
    """Compare ONNX Runtime and OpenVINO with PyTorch, alternating, with one thread.

    Returns:
        PyTorch's CPU time divided by that of each, and OpenVINO's largest difference.
    """
    divisor = int(model.data_preprocessor.pad_size_divisor)
    padded = [-(-side // divisor) * divisor for side in size]
    image = torch.rand(1, 3, *padded, generator=torch.Generator().manual_seed(0))
    sample = DetDataSample(metainfo=dict(img_shape=size, pad_shape=tuple(padded)))

    @torch.no_grad()
    def pytorch() -> list[np.ndarray]:
        (found,) = model.segment(image, [sample])
        return [found.prediction.masks.numpy(), model.probabilities(found).numpy()]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    feed = {"image": image.numpy()}
    ways = [
        pytorch,
        lambda: session.run(list(OUTPUTS), feed),
        lambda: [*compiled(feed).values()],
    ]
    times: list[list[float]] = [[] for _ in ways]
    outputs = [way() for way in ways]  # warms them up, too
    for name, output in zip(("ONNX Runtime", "OpenVINO"), outputs[1:], strict=True):
        found = [float(abs(a - b).max()) for a, b in zip(outputs[0], output, strict=True)]
        print(f"{path.parent.name}: {name} differs by {found}", file=sys.stderr)
    for _ in range(ROUNDS):
        for way, found_times in zip(ways, times, strict=True):
            start = time.process_time()
            way()
            found_times.append(time.process_time() - start)
    medians = [statistics.median(values) for values in times]
    print(f"CPU seconds: {medians}", file=sys.stderr)
    return [medians[0] / median for median in medians[1:]], max(found)


def known_rows() -> dict[str, list[str]]:
    """Rows of the page by title."""
    text = PLACE.search(PAGE.read_text(encoding="utf-8")).group()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row for row in rows[2:]}


def write(rows: dict[str, list[str]]) -> None:
    """Write the table into the page, in the order of :data:`MODELS`."""
    rule = [":--"] * (len(COLUMNS) - NUMERIC) + ["--:"] * NUMERIC
    known = [rows[model.title] for model in MODELS.values() if model.title in rows]
    texts = [f"| {' | '.join(row)}".rstrip(" |") for row in [COLUMNS, rule, *known]]
    lines = "".join(f"{text} |\n" for text in texts)
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(PLACE.sub(lambda m: m[1] + "\n" + lines + "\n" + m[2], text), encoding="utf-8")


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], metavar="MODEL")
    names = parser.parse_args().models or list(MODELS)
    torch.set_num_threads(1)
    logging.getLogger("mmengine").setLevel(logging.ERROR)
    for name in names:
        print(name, file=sys.stderr)
        row = row_of(MODELS[name])
        print(" | ".join(row), file=sys.stderr, flush=True)
        write({**known_rows(), row[0]: row})


if __name__ == "__main__":
    main()
