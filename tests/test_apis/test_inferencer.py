"""The inferencer: all kinds of input, invalid input, batches, devices, output files."""

from __future__ import annotations

import io
import json
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from odise_mm.annotations.panoptic_io import read_coco_panoptic
from odise_mm.apis import ConfigError, DeviceError, DeviceMemoryError, OpenVocabInferencer
from odise_mm.config.building import make_test_pipeline
from odise_mm.config.changing import set_frozen_weights
from odise_mm.config.finding import load_config
from odise_mm.errors import VocabularyError
from odise_mm.utils.device import pick_device
from odise_mm.utils.image import ImageError, read_image
from odise_mm.utils.memory import memory_guard
from odise_mm.vocabulary import Vocabulary
from tests.support.fake_segmentor import CONFIG


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "fake.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def inferencer(config: Path) -> OpenVocabInferencer:
    return OpenVocabInferencer(config, device="cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three images of different sizes and a text file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, (height, width) in {"a.png": (30, 40), "b.JPG": (50, 20), "c.bmp": (8, 8)}.items():
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_a_file_gives_named_segments_of_its_size(inferencer, folder):
    (result,) = inferencer(folder / "a.png", texts="pagoda, temple", stuff_texts="sky; lake")
    assert result.ok and result.image_path == str(folder / "a.png")
    assert (result.height, result.width) == result.panoptic.shape == (30, 40)
    assert result.panoptic.dtype == np.int32 and result.semantic.dtype == np.int32
    assert [(s.name, s.label, s.is_thing, s.area) for s in result.segments] == [
        ("pagoda", 0, True, 600),
        ("lake", 2, False, 600),
    ]
    assert result.class_names == ("pagoda", "sky", "lake")
    assert [result.share(s) for s in result.segments] == [0.5, 0.5]
    assert np.array_equal(result.mask(result.segments[0]), result.panoptic == 1)
    assert np.array_equal(result.instances.masks[0], result.panoptic == 1)
    assert result.instances.boxes.tolist() == [[0, 0, 40, 30]]
    assert result.instances.scores.dtype == np.float32
    assert json.loads(json.dumps(result.to_dict()))["segments"][1]["name"] == "lake"


def test_all_kinds_of_input_give_the_model_the_same_image(inferencer, folder):
    path = folder / "a.png"
    bgr = read_image(path)
    with Image.open(path) as pil:
        kinds = [str(path), path, bgr, pil, str(folder / "a.*"), [path], (p for p in [path])]
        for images in kinds:
            (result,) = inferencer(images)
            assert result.ok
    inferencer(bgr[..., ::-1], channel_order="rgb")
    first, *others = inferencer.model.seen
    # BGR, channels first, short edge 64.
    assert first.shape == (3, 64, 85) and first.dtype == torch.uint8
    assert len(others) == len(kinds)
    assert all(torch.equal(first, other) for other in others)


def test_folders_and_patterns_are_sorted_and_give_only_images(inferencer, folder):
    names = [Path(r.image_path).name for r in inferencer(folder)]
    assert names == ["a.png", "b.JPG", "c.bmp"]
    assert [Path(r.image_path).name for r in inferencer(str(folder / "[bc].*"))] == names[1:]
    assert len(inferencer([folder, folder / "a.png"])) == 4
    deep = inferencer(str(folder.parent / "**" / "*.bmp"))
    assert [Path(r.image_path).name for r in deep] == ["c.bmp"]


def test_a_file_with_the_name_of_a_pattern(inferencer, folder):
    odd = folder / "d[1].png"
    Image.new("RGB", (4, 4)).save(odd)
    (result,) = inferencer(str(odd))
    assert result.image_path == str(odd)


def test_batches_with_images_of_different_sizes(inferencer, folder):
    inferencer(folder, batch_size=2)
    assert inferencer.model.batches == [[(3, 64, 85), (3, 160, 64)], [(3, 64, 64)]]
    one, two = inferencer(folder), inferencer(folder, batch_size=3)
    assert all(np.array_equal(a.panoptic, b.panoptic) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_one_bad_file_does_not_stop_the_others(inferencer, folder, batch_size, capsys):
    good = sorted(folder.glob("*.[pb]*")) + [folder / "b.JPG"]
    missing, text = folder / "nowhere.png", folder / "notes.txt"
    images = [good[0], missing, good[1], text, np.zeros((0, 4, 3), np.uint8), good[2]]
    results = inferencer(images, batch_size=batch_size)
    assert [r.ok for r in results] == [True, False, True, False, False, True]
    assert [r.image_path for r in results if r.ok] == [str(p) for p in good]
    assert "no such file" in str(results[1].error) and str(missing) in str(results[1].error)
    assert "notes.txt" in str(results[3].error)
    assert "images[4]" in str(results[4].error)
    assert results[1].panoptic is None and results[1].segments == []
    summary = " ".join(capsys.readouterr().err.split())
    assert "3 of 6 images failed" in summary and "nowhere.png" in summary


def test_a_single_bad_image_is_an_exception(inferencer, folder):
    with pytest.raises(ImageError, match=r"nowhere\.png: no such file"):
        inferencer(folder / "nowhere.png")
    with pytest.raises(ImageError, match="NaN"):
        inferencer(np.full((4, 4, 3), np.nan))
    with pytest.raises(TypeError, match="images is a int"):
        inferencer(3)
    with pytest.raises(TypeError, match="images is a torch tensor; pass a numpy array"):
        inferencer(torch.zeros(3, 4, 4))


def test_an_empty_folder_or_pattern_is_reported(inferencer, tmp_path):
    (empty,) = inferencer(tmp_path)
    assert "no images in this folder" in str(empty.error)
    (none,) = inferencer(str(tmp_path / "*.png"))
    assert "no file matches" in str(none.error)
    assert inferencer([]) == []


@pytest.mark.parametrize("shape", [(1, 1), (3, 4000), (4000, 3), (1, 20_000), (20_000, 1)])
def test_extreme_shapes_pass_through(inferencer, shape):
    (result,) = inferencer(np.full((*shape, 3), 90, np.uint8), return_vis=True)
    assert result.panoptic.shape == shape
    assert min(inferencer.model.seen[0].shape) >= 1
    assert result.visualization.dtype == np.uint8


def test_images_are_read_only_when_needed(inferencer, folder):
    taken = []

    def images():
        for path in [folder / "a.png", folder / "b.JPG", folder / "c.bmp"]:
            taken.append(path)
            yield path

    stream = inferencer.stream(images())
    assert taken == []
    next(stream)
    assert len(taken) == 1
    stream.close()


def test_maps_can_be_dropped(inferencer, folder):
    results = inferencer(folder, keep_maps=False)
    assert all(r.panoptic is None and r.instances is None and r.segments for r in results)


def test_vocabularies(inferencer):
    image = np.zeros((4, 4, 3), np.uint8)

    def names(**kwargs):
        return inferencer(image, **kwargs)[0].class_names

    assert names() == ("cat", "dog")
    assert names(texts="zeppelin; dune") == ("zeppelin", "dune")
    assert names() == ("cat", "dog")  # those of the config again
    assert names(stuff_texts="sky") == ("sky",)
    assert len(names(texts="cityscapes")) == 19
    assert names(texts="zeppelin", vocabulary="cityscapes")[:2][0] == "zeppelin"
    assert len(names(texts="zeppelin", vocabulary="cityscapes")) == 20
    assert len(names(vocabulary=["voc20", "cityscapes"])) == len(
        names(vocabulary="voc20,cityscapes")
    )
    with pytest.raises(VocabularyError, match="unknown vocabulary 'cocoa'"):
        inferencer.stream(image, vocabulary="cocoa")
    own = Vocabulary.parse("whale")
    assert names(vocabulary=own) == ("whale",)
    for bad in ("", ";;,", "cat; cat"):
        with pytest.raises(VocabularyError):
            inferencer.stream(image, texts=bad)


def test_without_any_names(config):
    nameless = OpenVocabInferencer(config, device="cpu", cfg_options={"model.names": None})
    with pytest.raises(VocabularyError, match="pass texts"):
        nameless(np.zeros((4, 4, 3), np.uint8))


def test_output_files(inferencer, folder, tmp_path):
    (folder / "more").mkdir()
    Image.new("RGB", (5, 5)).save(folder / "more" / "A.png")
    out = tmp_path / "out"
    images = [folder / "a.png", "missing.png", folder / "more" / "A.png", np.zeros((6, 7))]
    results = inferencer(images, texts="cat", stuff_texts="sky", out_dir=out)
    names = [Path(r.files["vis"]).relative_to(out / "vis").as_posix() for r in results if r.ok]
    assert names == ["a.jpg", "more/A.jpg", "image_0003.jpg"]  # the missing file has no say
    back = read_coco_panoptic(out / "panoptic.json")
    for result, read in zip([r for r in results if r.ok], back, strict=True):
        assert np.array_equal(result.panoptic, read.panoptic)
        assert result.segments == read.segments
    info = json.loads((out / "panoptic.json").read_text())["info"]
    assert "random_weights" in info
    with Image.open(results[0].files["vis"]) as drawing:
        assert drawing.size == (results[0].width, results[0].height)


def test_results_so_far_are_kept_when_a_later_batch_fails(config, folder, tmp_path):
    options = {"model.fail": "a bug", "model.fail_from": 2}
    failing = OpenVocabInferencer(config, device="cpu", cfg_options=options)
    with pytest.raises(RuntimeError, match="a bug"):
        failing(folder, out_dir=tmp_path / "out")
    assert len(read_coco_panoptic(tmp_path / "out" / "panoptic.json")) == 2


def test_random_weights_are_noted_in_results(inferencer, folder):
    assert inferencer.random_weights
    plain, noticed = inferencer(folder / "a.png", return_vis=True)[0], None
    noticed = plain.visualization
    assert plain.random_weights
    plain.random_weights = False
    without = inferencer.draw(read_image(folder / "a.png"), plain)
    assert noticed.shape == without.shape == (plain.height, plain.width, 3)
    assert not np.array_equal(noticed, without)
    assert noticed[0, 0].tolist() == [61, 196, 255]  # amber, BGR


def test_missing_devices_are_errors(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(None) == torch.device("cpu")
    for asked in ("cuda", "cuda:1", torch.device("cuda")):
        with pytest.raises(DeviceError, match="was requested"):
            OpenVocabInferencer(config, device=asked)
    with pytest.raises(DeviceError, match="not a device"):
        OpenVocabInferencer(config, device="graphics card")
    for kind in ("xpu", "meta", "cuda:1.5"):
        with pytest.raises(DeviceError, match="use 'cpu', 'cuda'"):
            OpenVocabInferencer(config, device=kind)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device(None).type == "cuda"
    with pytest.raises(DeviceError, match="only 1 CUDA device"):
        pick_device("cuda:3")


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_out_of_memory_message_names_what_to_reduce(config, folder, kind, monkeypatch):
    failing = OpenVocabInferencer(config, device="cpu", cfg_options={"model.fail": kind})
    with pytest.raises(DeviceMemoryError) as info:
        failing(folder / "a.png", batch_size=2)
    message = str(info.value)
    for word in ("a.png: ", "max_tiles_per_batch", "image scale", "bf16", "85 x 64"):
        assert word in message
    assert "Nothing was moved" in message and "batch size" not in message
    lines = []
    monkeypatch.setattr("odise_mm.apis.running.print_log", lambda m, **kwargs: lines.append(m))
    results = failing(folder, batch_size=2)
    assert [type(result.error) for result in results] == [DeviceMemoryError] * 3
    assert len(lines) == 1 and "batch size (now 2)" in lines[0] and "one by one" in lines[0]
    half = OpenVocabInferencer(
        config, device="cpu", precision="bf16", cfg_options={"model.fail": kind}
    )
    with pytest.raises(DeviceMemoryError) as info:
        half(folder / "a.png")
    assert "batch size" not in str(info.value) and "bf16" not in str(info.value)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_other_messages_of_cuda_for_out_of_memory(text):
    with pytest.raises(DeviceMemoryError, match="out of memory on cuda:0 while loading"):
        with memory_guard(torch.device("cuda:0"), "bf16"):
            raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="CUDA error"):  # not a message of the CPU
        with memory_guard(torch.device("cpu"), "bf16"):
            raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        with memory_guard(torch.device("cuda:0"), "bf16"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_out_of_memory_message_names_the_size_of_the_image(config):
    failing = OpenVocabInferencer(config, device="cpu", cfg_options={"model.fail": "cpu"})
    with pytest.raises(DeviceMemoryError, match=r"own size \(now 2000 x 1000.* 0\.8 GB"):
        failing(np.zeros((1000, 2000, 3), np.uint8))


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_masks_that_are_not_finite_fail_only_their_image(config, batch_size, capsys):
    failing = OpenVocabInferencer(config, device="cpu", cfg_options={"model.fail": "overflow"})
    images = [np.full((20, 20, 3), gray, np.uint8) for gray in (0, 255, 90, 30)]
    results = failing(images, batch_size=batch_size)
    assert [r.ok for r in results] == [True, False, True, True]
    assert str(results[1].error) == "images[1]: not finite"
    assert "1 of 4 images" in capsys.readouterr().err
    with pytest.raises(FloatingPointError, match="not finite"):
        failing(images[1])


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_out_of_memory_in_the_model_fails_only_that_image(config, batch_size):
    failing = OpenVocabInferencer(config, device="cpu", cfg_options={"model.fail": "huge"})
    images = [np.full((20, 20, 3), gray, np.uint8) for gray in (0, 255, 90, 30)]
    results = failing(images, batch_size=batch_size)
    assert [r.ok for r in results] == [True, False, True, True]
    assert str(results[1].error).startswith("images[1]: out of memory on cpu")
    # The error does not keep the tensors of the failed call in memory.
    error = results[1].error
    assert error.__traceback__ is error.__cause__ is error.__context__ is None


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(
    "place",
    [
        "odise_mm.structures.Instances.pack",
        "odise_mm.apis.output.write_image",
        "odise_mm.annotations.panoptic_io.write_marked_png",
        "odise_mm.annotations.panoptic_io.describe_result",
    ],
)
def test_out_of_memory_in_results_fails_only_that_image(
    inferencer, folder, tmp_path, monkeypatch, place, batch_size
):
    holder, _, name = place.rpartition(".")
    holder = pkgutil.resolve_name(holder)
    plain, calls = getattr(holder, name), []

    def scarce(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError("Unable to allocate 4 GiB")
        return plain(*args, **kwargs)

    monkeypatch.setattr(holder, name, scarce)
    out = tmp_path / "out"
    results = inferencer(folder, out_dir=out, batch_size=batch_size)
    assert [r.ok for r in results] == [True, False, True]
    assert "b.JPG: not enough memory for its 20 x 50 pixels" in str(results[1].error)
    assert results[1].files == {} and results[1].panoptic is None
    # The failed image has no files, and the others are complete.
    assert [r.image_name for r in read_coco_panoptic(out / "panoptic.json")] == ["a.png", "c.bmp"]
    assert {path.stem for path in out.glob("p*/*")} == {"a", "c"}
    assert not (out / "panoptic.journal").exists()


def test_out_of_memory_in_the_pipeline_fails_only_that_image(inferencer, folder, monkeypatch):
    sizes = []
    pipeline = inferencer.pipeline

    def scarce(data):
        sizes.append(data["img"].shape)
        if data["img"].shape[0] == 50:
            raise MemoryError("Unable to allocate 2.93 KiB")
        return pipeline(data)

    monkeypatch.setattr(inferencer, "pipeline", scarce)
    results = inferencer(folder, batch_size=3)
    assert [r.ok for r in results] == [True, False, True] and len(sizes) == 3
    assert "b.JPG: not enough memory for its 20 x 50 pixels" in str(results[1].error)
    assert results[1].error.__cause__.__traceback__ is None
    with pytest.raises(DeviceMemoryError, match=r"b\.JPG: not enough memory"):
        inferencer(folder / "b.JPG")


def test_the_limit_on_pixels(config, folder, tmp_path):
    small = OpenVocabInferencer(config, device="cpu", max_pixels=1000)
    results = small([folder, read_image(folder / "a.png")])
    assert [r.ok for r in results] == [False, True, True, False]
    assert "40 x 30 = 1,200, but max_pixels is 1,000" in str(results[0].error)
    with pytest.raises(ImageError, match=r"a\.png: too many pixels"):
        small(folder / "a.png")
    large = OpenVocabInferencer(config, device="cpu", max_pixels=None)
    assert large.max_pixels is None and large(folder / "a.png")[0].ok
    with pytest.raises(ValueError, match="max_pixels"):
        OpenVocabInferencer(config, device="cpu", max_pixels=0)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_exceptions_of_a_generator_are_raised_after_its_images(
    inferencer, folder, batch_size, tmp_path
):
    class Gone(Exception):
        pass

    def images():
        yield folder / "a.png"
        yield folder / "missing.png"
        yield from (folder / "b.JPG", folder / "c.bmp")
        raise Gone("the camera was unplugged")

    results = []
    with pytest.raises(Gone, match="unplugged"):
        for result in inferencer.stream(images(), batch_size=batch_size, out_dir=tmp_path / "o"):
            results.append(result)
    assert [r.ok for r in results] == [True, False, True, True]
    assert len(read_coco_panoptic(tmp_path / "o" / "panoptic.json")) == 3


def test_bytes_and_file_objects(inferencer, folder):
    content = (folder / "a.png").read_bytes()
    expected = inferencer(folder / "a.png")[0].panoptic
    with open(folder / "a.png", "rb") as file:
        for one in (content, bytearray(content), io.BytesIO(content), file):
            (result,) = inferencer(one)
            assert np.array_equal(result.panoptic, expected) and result.image_path is None
            assert len(inferencer([one, one])) == 2
    with pytest.raises(ImageError, match="^image: not a readable image"):
        inferencer(b"not an image" * 30_000)
    with pytest.raises(TypeError, match=r"numpy\.array\(pixels"):
        inferencer(np.zeros((300, 4, 3), np.uint8).tolist())
    with pytest.raises(ImageError, match="not downloaded from URLs"):
        inferencer("https://example.com/a.jpg")


def test_an_image_with_a_name_of_dots(inferencer, folder, tmp_path):
    (folder / "a.png").rename(folder / "..png")
    results = inferencer([folder / "..png", f"{folder}/c.bmp/"], out_dir=tmp_path / "o")
    assert all(r.ok for r in results)
    back = read_coco_panoptic(tmp_path / "o" / "panoptic.json")
    assert [r.image_name for r in back] == ["..png", "c.bmp"]


def test_other_errors_pass_unchanged(config, folder):
    failing = OpenVocabInferencer(config, device="cpu", cfg_options={"model.fail": "a bug"})
    with pytest.raises(RuntimeError, match="^a bug$"):
        failing(folder / "a.png")


def test_precision_and_compilation_of_the_model(config, inferencer):
    assert inferencer.model.precision == "fp32" and not inferencer.model.compiled
    other = OpenVocabInferencer(config, device="cpu", precision="bf16", compile_frozen=True)
    assert other.model.precision == "bf16" and other.model.compiled
    with pytest.raises(DeviceError, match="fp16 is for GPUs"):
        OpenVocabInferencer(config, device="cpu", precision="fp16")
    with pytest.raises(ConfigError, match="precision 'int8'"):
        OpenVocabInferencer(config, device="cpu", precision="int8")


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_wrong_batch_size(inferencer, batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        inferencer.stream(np.zeros((4, 4, 3), np.uint8), batch_size=batch_size)


def test_configs_are_found_by_name(tmp_path, monkeypatch):
    folder = tmp_path / "configs" / "mine"
    folder.mkdir(parents=True)
    (folder / "fancy_model.py").write_text("x = 1")
    monkeypatch.chdir(tmp_path)
    for name in (
        "fancy_model",
        "fancy_model.py",
        "mine/fancy_model",
        str(folder) + "/fancy_model.py",
    ):
        assert load_config(name).x == 1
    with pytest.raises(ConfigError, match="Did you mean fancy_model"):
        load_config("fancy_modle")
    other = tmp_path / "configs" / "other"
    other.mkdir()
    (other / "fancy_model.py").write_text("x = 2")
    with pytest.raises(ConfigError, match="matches several"):
        load_config("fancy_model")
    (folder / "broken.py").write_text("x = (")
    with pytest.raises(ConfigError, match=r"broken\.py: not a valid config"):
        load_config(folder / "broken.py")


def test_config_errors_name_the_part(config):
    for options, match in (
        ({"model.type": "NoSuchThing"}, "unknown type.*NoSuchThing"),
        ({"model.wheels": 4}, "invalid argument.*wheels"),
        ({"test_pipeline.1.type": "NoSuchStep"}, "unknown type.*NoSuchStep"),
        ({"test_pipeline.1.wheels": 4}, "invalid argument.*wheels"),
        ({"test_pipeline.9.scale": 4}, "cannot set test_pipeline.9.scale"),
    ):
        with pytest.raises(ConfigError, match=match):
            OpenVocabInferencer(config, device="cpu", cfg_options=options)
    with pytest.raises(ConfigError, match="missing key `model`"):
        nothing = Config(dict(test_pipeline=[dict(type="LoadImage")], random_weights=True))
        OpenVocabInferencer(nothing, device="cpu")
    with pytest.raises(ConfigError, match="missing key `test_pipeline`"):
        bare = Config(dict(model=dict(type="FakeSegmentor"), random_weights=True))
        OpenVocabInferencer(bare, device="cpu")


def test_frozen_weights_can_be_set():
    cfg = Config(dict(model=dict(clip=dict(weights="a"), backbone=dict(type="x"))))
    set_frozen_weights(cfg, "clip", "b")
    assert cfg.model.clip.weights == "b"
    for part in ("backbone", "captioner"):
        with pytest.raises(ConfigError, match=f"cannot set `model.{part}.weights`"):
            set_frozen_weights(cfg, part, "b")


def test_pipeline_of_a_dataset_is_used_for_single_images():
    steps = [
        dict(type="LoadImageFromFile", backend_args=None),
        dict(type="mmdet.LoadPanopticAnnotations"),
        dict(type="mmdet.Resize", scale=(64, 64), keep_ratio=True),
    ]
    nested = dict(dataset=dict(dataset=dict(pipeline=steps)))
    pipeline = make_test_pipeline(Config(dict(test_dataloader=nested)))
    assert [type(t).__name__ for t in pipeline.transforms] == ["LoadImage", "Resize"]
    pipeline = make_test_pipeline(Config(dict(test_dataloader=nested)), already_read=True)
    assert [type(t).__name__ for t in pipeline.transforms] == ["Resize"]


def test_an_image_is_read_once(inferencer, folder, monkeypatch):
    """The input of the model equals the output of the complete pipeline for the file."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(args[0])
        return read_image(*args, **kwargs)

    monkeypatch.setattr("odise_mm.apis.running.read_image", counted)
    monkeypatch.setattr("odise_mm.datasets.transforms.loading.read_image", counted)
    path = folder / "a.png"
    (result,) = inferencer(path)
    assert [str(source) for source in calls] == [str(path)]
    packed = make_test_pipeline(inferencer.cfg)(dict(img_path=str(path), img_id=str(path)))
    assert torch.equal(inferencer.model.seen[-1], packed["inputs"])
    assert (result.height, result.width) == packed["data_samples"].ori_shape


def test_the_tiny_model_from_images_to_maps(tmp_path):
    # Random masks overlap, so a low threshold is needed to get segments.
    options = {"test_pipeline.1.scale": (96, 64), "model.test_cfg.overlap_threshold": 0.02}
    inferencer = OpenVocabInferencer("odise_tiny", device="cpu", cfg_options=options)
    assert inferencer.random_weights
    rng = np.random.default_rng(0)
    shapes = [(64, 96), (80, 50)]
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    names = dict(texts="cat; dog", stuff_texts="sky")
    results = inferencer(images, batch_size=2, out_dir=tmp_path, **names)
    for result, shape in zip(results, shapes, strict=True):
        assert result.panoptic.shape == result.semantic.shape == shape
        assert result.instances.masks.shape == (len(result.instances), *shape)
        assert set(np.unique(result.panoptic)) - {0} == {s.id for s in result.segments}
        for segment in result.segments:
            assert segment.area == (result.panoptic == segment.id).sum()
            assert segment.name == result.class_names[segment.label]
            assert segment.is_thing == (segment.name != "sky")
    assert len(read_coco_panoptic(tmp_path / "panoptic.json")) == 2
    (again,) = inferencer(images[1], **names)
    assert np.mean(again.panoptic == results[1].panoptic) > 0.999  # the same alone and in a batch


def test_a_progress_bar_for_long_lists_only(inferencer, folder, capsys):
    inferencer(folder)
    assert "images" not in capsys.readouterr().err
    inferencer([*folder.iterdir()])
    assert "4/4" in capsys.readouterr().err
    inferencer([*folder.iterdir()], progress=False)
    assert "4/4" not in capsys.readouterr().err
