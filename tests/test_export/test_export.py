"""Exported graphs compute what PyTorch computes, for other images, sizes and class names.

One small FC-CLIP is exported once, to both formats, with the command. Its image size and its class
names are inputs.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from packaging.version import Version
from PIL import Image
from timm.models import register_model
from timm.models.convnext import _create_convnext
from torch import Tensor, nn

from odise_mm import OpenVocabInferencer
from odise_mm.checkpoints.safe_loading import save_state_dict
from odise_mm.cli.export import image_size
from odise_mm.cli.main import main
from odise_mm.config.building import build_model
from odise_mm.errors import ConfigError
from odise_mm.export import TOLERANCE, export_model, write_names
from odise_mm.export.graph_form import graph_form
from odise_mm.export.readme import readme_of
from odise_mm.models import OpenVocabSegmentor, RegionMemory
from odise_mm.models.classifiers.text_adapters import ContentDependentTransfer
from odise_mm.models.necks.captioners.text import CaptionCaptioner, HeuristicCaptioner
from odise_mm.models.postprocess import panoptic_inference, resize_masks
from odise_mm.vocabulary import Vocabulary
from tests.support.golden_families import tiny_config
from tests.support.parts import random_weights

ROOT = Path(__file__).parents[2]
QUERIES = 12
TEXTS, STUFF = "cat, kitty; dog", "sky"
OTHER = Vocabulary(
    (("a red car", "automobile"), ("tree",), ("sky", "clouds", "heaven"), ("wall",), ("road",)),
    (True, True, False, False, False),
)
onnx_only = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="needs odise_mm[export]",
)
old_torch = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.14"), reason="export is tested with torch 2.14"
)


@dataclass
class Case:
    model: OpenVocabSegmentor | None
    folder: Path
    printed: str

    @property
    def description(self) -> dict[str, Any]:
        return json.loads((self.folder / "model.json").read_text())


@register_model
def smallest_convnext_of_clip(pretrained: bool = False, **options: Any) -> nn.Module:
    sizes = dict(dims=(16, 32, 64, 128), depths=(1, 1, 1, 1))
    return _create_convnext("convnext_large", pretrained=pretrained, **{**sizes, **options})


def small_fcclip() -> tuple[Any, OpenVocabSegmentor]:
    """A small FC-CLIP with varied masks, of which some are empty."""
    config = tiny_config("fcclip")
    config.random_weights = True
    config.test_pipeline[1].scale = (160, 96)
    config.model.clip.model.vision_cfg.timm_model_name = "smallest_convnext_of_clip"
    head = config.model.head
    head.num_queries = QUERIES
    head.transformer_decoder.num_layers = 1
    head.pixel_decoder.encoder.num_layers = 1
    config.model.test_cfg = dict(overlap_threshold=0.1)
    model = build_model(config).eval()
    random_weights(model.head)
    with torch.no_grad():
        # The first channel of the mask features is 1, so its weight shifts the logits of masks.
        model.head.pixel_decoder.mask_feature.weight[0] = 0
        model.head.pixel_decoder.mask_feature.bias[0] = 1
        model.head.pixel_decoder.mask_feature.weight[1:] *= 2
        model.head.query_feat.weight *= 50  # queries differ
        model.head.mask_embed[-1].weight[0] *= 30
        model.head.mask_embed[-1].bias[0] = 0
    return config, model


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("export")
    config, model = small_fcclip()
    config.dump(folder / "small.py")
    save_state_dict(folder / "small.safetensors", model.state_dict(), {})
    has_onnx = importlib.util.find_spec("onnxscript") is not None
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        status = main(
            ["export", str(folder / "small.py"), str(folder / "small.safetensors")]
            + ["--size", "any", "--names", "input", "--texts", TEXTS]
            + ["--stuff-texts", STUFF, "--out", str(folder / "out")]
            + ["--format", "both" if has_onnx else "torch"]
        )
    assert status == 0, lines
    return Case(model, folder / "out", "\n".join(lines))


def image_of(size: tuple[int, int], seed: int) -> np.ndarray:
    """A random image of soft patches, (height, width, 3) uint8."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 6, 5, generator=generator)
    image = torch.nn.functional.interpolate(small, size, mode="bicubic").clamp(0, 1)
    return (image[0].permute(1, 2, 0) * 255).byte().numpy()


def names_for(case: Case, vocabulary: Vocabulary, folder: Path) -> dict[str, np.ndarray]:
    path, classes = write_names(case.model, folder, vocabulary)
    assert [c["name"] for c in json.loads(classes.read_text())["classes"]] == [*vocabulary.names]
    return dict(np.load(path))


def test_names_of_a_captioner_are_not_class_names(case: Case, tmp_path: Path) -> None:
    wanted = names_for(case, OTHER, tmp_path)
    model = copy.copy(case.model)
    model._modules = {**model._modules}
    model.captioner = HeuristicCaptioner(
        model.classifiers[0].text_encoder, lambda texts: torch.zeros(len(texts), 77, 8)
    )
    found = names_for(Case(model, case.folder, ""), OTHER, tmp_path)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[key], wanted[key]) for key in wanted)


def padded(size: tuple[int, int]) -> tuple[int, int]:
    return tuple(-(-side // 32) * 32 for side in size)


@torch.no_grad()
def expected_of(case: Case, inputs: np.ndarray, vocabulary: Vocabulary) -> Sequence[Tensor]:
    (found,) = case.model.segment(torch.from_numpy(inputs), None, vocabulary)
    return found.prediction.masks, case.model.probabilities(found)


def shipped(case: Case) -> Any:
    """Import the copy of results.py that lies beside the graph."""
    spec = importlib.util.spec_from_file_location("shipped_results", case.folder / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_onnx(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def check(found: Sequence[Any], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        one = torch.as_tensor(one)
        assert one.shape == other.shape
        assert (one - other).abs().max() < TOLERANCE
        assert other.std() > 10 * TOLERANCE  # constants would always be equal


@onnx_only
@old_torch
@pytest.mark.parametrize("size", [(100, 70), (64, 200)])
def test_onnx_equals_pytorch_and_so_does_the_merge(
    case: Case, tmp_path: Path, size: tuple[int, int]
) -> None:
    results, description = shipped(case), case.description
    image = image_of(size, seed=3)
    inputs = results.prepare(image, description)
    assert inputs.shape[2:] == padded(size)
    feed = {"image": inputs, **names_for(case, OTHER, tmp_path)}
    masks, probabilities = run_onnx(case.folder / "model.onnx", feed)
    check([masks, probabilities], expected_of(case, inputs, OTHER))

    (sample,) = case.model.test_step(
        {
            "inputs": [torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)],
            "data_samples": [DetDataSample(metainfo=dict(img_shape=size, ori_shape=(90, 80)))],
        },
        OTHER,
    )
    wanted = sample.pred_panoptic_seg.sem_seg[0].numpy()
    description["classes"] = json.loads((tmp_path / "names.json").read_text())["classes"]
    ids, segments = results.panoptic(masks[0], probabilities[0], description, (90, 80), size)
    assert len(segments) > 1
    assert (ids == wanted).mean() > 0.999
    infos = sample.pred_panoptic_seg.segments_info
    assert [s["name"] for s in segments] == [info["category_name"] for info in infos]


@onnx_only
@old_torch
def test_the_readmes_command_exports_the_toy_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = re.findall(r"`odise-mm (export .*?)`", (ROOT / "README.md").read_text())
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)) == 0
    photo = np.asarray(Image.open(ROOT / "demo/images/toy_scene.jpg").convert("RGB"))
    case = Case(None, tmp_path / "exported", "")
    results, description = shipped(case), case.description
    feed = {"image": results.prepare(photo, description)}
    masks, probabilities = run_onnx(case.folder / "model.onnx", feed)
    ids, segments = results.panoptic(masks[0], probabilities[0], description, photo.shape[:2])
    (result,) = OpenVocabInferencer("odise_toy_label", device="cpu")(
        photo[..., ::-1], texts="red moon; white box", stuff_texts="sky; water"
    )
    assert {segment.name for segment in result.segments} >= {"red moon", "white box", "sky"}
    assert [s["name"] for s in segments] == [segment.name for segment in result.segments]
    assert (ids == result.panoptic).mean() > 0.999


@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=onnx_only)])
@old_torch
def test_the_example_in_the_folder_equals_the_inferencer(
    case: Case, format: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(case.folder)
    photo = Image.fromarray(image_of((75, 110), seed=8))
    photo.save("photo.png")
    readme = (case.folder / "README.md").read_text()
    if format == "torch":
        readme = readme_of(case.description, ["torch"])
    (code,) = re.findall("```python\n(.*?)```", readme, re.DOTALL)
    code = code.replace("photo.jpg", "photo.png")  # JPEG is not lossless
    if format == "onnx":
        without = "import sys; sys.modules.update(dict.fromkeys(['odise_mm', 'torch', 'cv2']))\n"
        done = subprocess.run(
            [sys.executable, "-c", without + code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    else:
        monkeypatch.syspath_prepend(case.folder)
        exec(code, {})
        del sys.modules["results"]
        printed = capsys.readouterr().out
    folder = case.folder.parent
    inferencer = OpenVocabInferencer(
        folder / "small.py", folder / "small.safetensors", device="cpu"
    )
    (result,) = inferencer(photo, texts=TEXTS, stuff_texts=STUFF)
    assert len(result.segments) > 1
    rows = [line.split() for line in printed.splitlines()]
    assert [row[1] for row in rows] == [segment.name for segment in result.segments]
    for row, segment in zip(rows, result.segments, strict=True):
        assert abs(int(row[3]) - segment.area) <= 5
    colors = np.asarray(Image.open("segments.png")).astype(int) @ [1, 1000, 1_000_000]
    for one in np.unique(colors):  # each color is one segment
        ids = result.panoptic[colors == one]
        assert (ids == np.bincount(ids).argmax()).mean() > 0.99


class AttentionRows(torch.fx.Interpreter):
    """Runs a program and counts the rows of its attention masks, and those that are empty."""

    rows = hidden = empty = 0

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if "softmax" in str(target):
            self.see(args[0] > float("-inf"))
        elif "scaled_dot_product" in str(target):
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            if mask is not None:
                self.see(mask if mask.dtype == torch.bool else mask > float("-inf"))
        return super().call_function(target, args, kwargs)

    def see(self, visible: Tensor) -> None:
        self.rows += visible[..., 0].numel()
        self.hidden += int((~visible).sum())
        self.empty += int((~visible.any(-1)).sum())


@old_torch
def test_the_program_equals_pytorch_and_masks_no_row_fully(case: Case, tmp_path: Path) -> None:
    """PyTorch, ONNX Runtime and OpenVINO each compute something else for a fully masked row."""
    inputs = image_of((64, 96), seed=5).transpose(2, 0, 1)[None].astype(np.float32) / 255
    names = names_for(case, OTHER, tmp_path)
    expected = expected_of(case, inputs, OTHER)
    empty = (expected[0] < 0).flatten(2).all(-1)
    assert 0 < empty.sum() < QUERIES  # there are queries whose masks are empty

    program = AttentionRows(torch.export.load(case.folder / "model.pt2").module())
    check(program.run(torch.from_numpy(inputs), *map(torch.from_numpy, names.values())), expected)
    assert program.hidden > 0 and program.rows > 0
    assert program.empty == 0
    assert "largest differences between torch and PyTorch: masks " in case.printed


@onnx_only
@old_torch
def test_no_row_of_a_softmax_in_onnx_is_fully_masked(case: Case, tmp_path: Path) -> None:
    import onnx

    graph = onnx.load(case.folder / "model.onnx")
    assert not any(node.op_type == "Attention" for node in graph.graph.node)
    scores = [node.input[0] for node in graph.graph.node if node.op_type == "Softmax"]
    del graph.graph.output[:]
    for name in scores:
        graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    onnx.save(graph, tmp_path / "scores.onnx")
    inputs = image_of((64, 96), seed=5).transpose(2, 0, 1)[None].astype(np.float32) / 255
    feed = {"image": inputs, **names_for(case, OTHER, tmp_path)}
    found = run_onnx(tmp_path / "scores.onnx", feed)
    assert sum(int((values < -1e30).sum()) for values in found) > 0  # masked attention is there
    for values in found:
        assert (values > -1e30).any(-1).all()


def test_the_graph_form_of_the_head_equals_the_head() -> None:
    _, model = small_fcclip()
    channels = [level.in_channels for level in lateral_and_input(model)]
    for height, width in ((64, 96), (32, 160)):
        generator = torch.Generator().manual_seed(height)
        pyramid = [
            torch.randn(2, count, height // stride, width // stride, generator=generator)
            for count, stride in zip(channels, (4, 8, 16, 32), strict=True)
        ]
        with torch.no_grad():
            (expected,) = model.head(pyramid)
            with graph_form(model):
                (found,) = model.head(pyramid)
        assert expected.masks.std() > 0.1
        torch.testing.assert_close(found.masks, expected.masks, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.embeddings, expected.embeddings, atol=1e-4, rtol=1e-4)


def lateral_and_input(model: OpenVocabSegmentor) -> list[Any]:
    """Convolutions that read the levels of the pyramid, the finest first."""
    decoder = model.head.pixel_decoder
    return [layer.conv for layer in (*decoder.lateral_convs, *reversed(decoder.input_convs))]


@pytest.mark.parametrize("mask_resize", ["logit", "probability"])
@pytest.mark.parametrize("seed", range(3))
def test_the_merge_equals_that_of_the_package(mask_resize: str, seed: int) -> None:
    from odise_mm.export import results

    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(20, 3, 4, generator=generator)[None] * 6
    masks = torch.nn.functional.interpolate(coarse, (16, 24), mode="bilinear")[0]
    probabilities = (torch.randn(20, 5, generator=generator) * 3).softmax(-1)
    is_thing = (True, False, True, False)
    description = dict(
        classes=[dict(name=str(i), is_thing=flag) for i, flag in enumerate(is_thing)],
        settings=dict(
            score_threshold=0.2, overlap_threshold=0.1, min_area=400, mask_resize=mask_resize
        ),
        divisor=32,
        image_size=[60, 90],
        mask_frame=None,
    )
    at_size = resize_masks(
        masks, (64, 96), (60, 90), (47, 101), sigmoid_first=mask_resize == "probability"
    )
    expected, wanted = panoptic_inference(
        probabilities,
        at_size,
        is_thing,
        overlap_threshold=0.1,
        score_threshold=0.2,
        min_area=400,
    )
    ids, segments = results.panoptic(
        masks.numpy(), probabilities.numpy(), description, size=(47, 101)
    )
    assert len(wanted) > 1
    assert (ids == expected.numpy()).mean() > 0.9995  # rounding may decide where two masks meet
    assert [(s["id"], s["label"], s["is_thing"]) for s in segments] == [
        (s.id, s.label, s.is_thing) for s in wanted
    ]
    for segment, other in zip(segments, wanted, strict=True):
        assert segment["score"] == pytest.approx(other.score, abs=1e-3)
        assert segment["area"] == pytest.approx(other.area, abs=3)


@old_torch
@pytest.mark.parametrize("align", [False, True])
def test_the_text_adapter_of_maftplus_is_exported_for_any_size(align: bool) -> None:
    adapter = ContentDependentTransfer(16, 2, "semantic", align).eval()

    class Adapted(nn.Module):
        def forward(self, text: Tensor, features: Tensor) -> Tensor:
            return adapter(text, features, lambda rows: rows)

    generator = torch.Generator().manual_seed(0)
    text = torch.randn(3, 16, generator=generator)

    def features(height: int, width: int) -> Tensor:
        return torch.randn(1, 16, height, width, generator=generator)

    height, width = (torch.export.Dim(name, min=1, max=128) for name in ("height", "width"))
    shapes = {"text": {}, "features": {2: height, 3: width}}
    program = torch.export.export(
        Adapted(), (text, features(2, 3)), dynamic_shapes=shapes, strict=False
    ).module()
    for size in ((3, 2), (4, 4), (7, 5), (8, 16)):  # channels divide some of the areas
        maps = features(*size)
        torch.testing.assert_close(program(text, maps), adapter(text, maps, lambda rows: rows))


def test_results_need_only_numpy() -> None:
    from odise_mm.export import results

    nodes = ast.walk(ast.parse(Path(results.__file__).read_text()))
    names = [n.module for n in nodes if isinstance(n, ast.ImportFrom)] + ["numpy"]
    assert not any(isinstance(n, ast.Import) and n.names[0].name != "numpy" for n in nodes)
    imported = {name.split(".")[0] for name in names}
    assert imported == {"__future__", "typing", "numpy"}


def test_what_cannot_be_exported_is_refused_with_the_way_out(tmp_path: Path) -> None:
    _, model = small_fcclip()
    for settings, message in (
        (dict(formats="onnx"), "must be a list of onnx, torch"),
        (dict(formats=["torch"], names="no"), "is not one of baked, input"),
        (dict(formats=["torch"], image_size=(0, 5)), "must be positive"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_model(model, tmp_path, **settings)
    model.tile_size = 512
    with pytest.raises(ConfigError, match="depend on the image size: give the size"):
        export_model(model, tmp_path, ["torch"], image_size=None)
    model.captioner = CaptionCaptioner(lambda texts: torch.zeros(len(texts), 77, 8))
    with pytest.raises(ConfigError, match="CaptionCaptioner uses a sentence .*: use Implicit"):
        export_model(model, tmp_path, ["torch"])
    model.memory = RegionMemory()
    with pytest.raises(ConfigError, match="export a model that was not given a memory"):
        export_model(model, tmp_path, ["torch"], image_size=(64, 64))
    model.set_precision("bf16")
    with pytest.raises(ConfigError, match="precision fp32"):
        export_model(model, tmp_path, ["torch"])
    assert not any(tmp_path.iterdir())


def test_sizes_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert image_size("512x768") == (512, 768) and image_size("any") is None
    for wrong in ("512", "0x5", "5x", "axb"):
        with pytest.raises(SystemExit):
            main(["export", "odise_tiny", "--out", "out", "--size", wrong])
        assert "must be HEIGHTxWIDTH" in capsys.readouterr().err
