"""Drawing of results: names inside their regions, distinct colors, any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from PIL import Image, ImageDraw

from odise_mm.registry import VISUALIZERS
from odise_mm.structures import Segment, SegmentationResult
from odise_mm.visualization import class_colors, draw_panoptic
from odise_mm.visualization.colors import is_light, shade
from odise_mm.visualization.panoptic import (
    _color_segments,
    _enlarge,
    _find_boxes,
    _legend_entries,
    _write_names,
    deepest_box,
)
from odise_mm.visualization.text import font_for, halve, text_size, tidy, wrap
from odise_mm.vocabulary import Vocabulary


def make_result(ids: np.ndarray, names: list[str]) -> SegmentationResult:
    classes = list(dict.fromkeys(names))
    segments = [
        Segment(i, classes.index(n), n, 0.9, int((ids == i).sum()), True)
        for i, n in enumerate(names, start=1)
    ]
    return SegmentationResult(
        image_name="test",
        height=ids.shape[0],
        width=ids.shape[1],
        panoptic=ids.astype(np.int32),
        segments=segments,
        class_names=tuple(classes),
    )


def halves(height: int, width: int) -> np.ndarray:
    ids = np.ones((height, width), np.int32)
    ids[:, width // 2 :] = 2
    return ids


def test_colors_depend_on_names():
    names = ["person", "sky", "tree", "car", "road"]
    colors = class_colors(names)
    assert colors.dtype == np.uint8 and colors.shape == (5, 3)
    assert np.array_equal(class_colors(["person"])[0], colors[0])
    assert np.array_equal(class_colors(["  Person "])[0], colors[0])
    assert class_colors([]).shape == (0, 3)


def test_colors_of_an_image_are_distinct():
    import cv2

    colors = class_colors([f"class {i}" for i in range(12)])
    lab = cv2.cvtColor(colors[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    gaps = np.linalg.norm(lab[:, None] - lab[None], axis=2)[np.triu_indices(12, 1)]
    assert gaps.min() > 25
    many = class_colors([str(i) for i in range(1500)])
    assert len(np.unique(many, axis=0)) > 40


def test_words_for_colors_and_common_stuff_get_their_color():
    names = [
        "black heart",
        "red ball",
        "red box",
        "polka-dot blue box",
        "wood",
        "sky",
        "dark red car",
    ]
    dark, red, other_red, blue, wood, sky, third_red = class_colors(names).astype(int)
    assert dark.max() < 80 and blue.argmax() == 2 and sky.argmax() == 2
    assert wood[0] > wood[1] > wood[2]
    for color in (red, other_red, third_red):
        assert color.argmax() == 0 and color[0] > 1.5 * color[1:].max()
    assert len({tuple(color) for color in (red, other_red, third_red)}) == 3
    assert class_colors(["redwood"])[0].tolist() != class_colors(["red"])[0].tolist()


@pytest.mark.parametrize("name", ["coco", "lvis"])
def test_a_class_has_one_color_in_all_images(name):
    vocabulary = Vocabulary.load(name)
    segments = [
        Segment(1 + i, label, vocabulary.names[label], 0.9, 10, True)
        for i, label in enumerate((5, 70, 100))
    ]
    found = []
    for chosen in (segments, segments[1:], segments[::-1]):
        result = SegmentationResult(segments=list(chosen), class_names=vocabulary.names)
        found.append({item.segment.name: item.color for item in _color_segments(result)})
    assert found[0] == found[2] and found[1].items() <= found[0].items()


def test_shades_of_instances_differ():
    shades = {shade((200, 60, 60), i) for i in range(6)}
    assert len(shades) == 6 and (200, 60, 60) in shades


def test_text_contrast():
    assert is_light((255, 255, 255)) and is_light((255, 220, 0))
    assert not is_light((0, 0, 0)) and not is_light((0, 0, 200))


def test_fill_outline_and_void():
    image = np.full((600, 800, 3), 100, np.uint8)
    ids = halves(600, 800)
    ids[500:] = 0
    result = make_result(ids, ["cat", "dog"])
    drawing = draw_panoptic(image, result, legend=False)
    assert drawing.shape == image.shape and drawing.dtype == np.uint8
    colors = class_colors(["cat", "dog"])[:, ::-1].astype(float)
    for x, color in ((30, colors[0]), (770, colors[1])):
        assert np.abs(drawing[30, x] - (100 + color) / 2).max() <= 1
    assert drawing[590, 30].tolist() == [75, 75, 75]
    assert drawing[100, 400].min() > 220  # the thin light line between the two
    assert np.array_equal(image, np.full_like(image, 100))  # not modified


def test_channel_order():
    image = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    result = make_result(halves(300, 500), ["cat", "dog"])
    bgr = draw_panoptic(image, result)
    rgb = draw_panoptic(image[..., ::-1], result, channel_order="rgb")
    assert np.array_equal(bgr, rgb[..., ::-1])


def test_names_stay_inside_their_regions():
    image = np.full((400, 600, 3), 128, np.uint8)
    ids = np.zeros((400, 600), np.int32)
    ids[40:160, 50:400] = 1
    with_name = draw_panoptic(image, make_result(ids, ["elephant"]), legend=False)
    without = draw_panoptic(image, make_result(ids, [" "]), legend=False)
    changed = (np.abs(with_name.astype(int) - without).max(axis=2) > 60).astype(int)
    inner = changed[60:140, 70:380]
    assert inner.sum() > 200  # the plate; colors depend on names, so the fill differs, too
    assert changed[:38].sum() == changed[162:].sum() == changed[:, :48].sum() == 0


def test_each_large_part_has_a_label():
    image = np.full((400, 600, 3), 128, np.uint8)
    ids = np.zeros((400, 600), np.int32)
    ids[20:180, 20:280] = ids[220:380, 320:580] = 1
    (color,) = class_colors(["cat"])[:, ::-1]
    drawing = draw_panoptic(image, make_result(ids, ["cat"]))
    plates = (drawing == color).all(axis=2)
    # The pure color is that of plates; the fill is half transparent.
    assert plates[20:180, 20:280].sum() > 300 and plates[220:380, 320:580].sum() > 300


def test_thin_segments_keep_their_fill():
    image = np.full((600, 800, 3), 100, np.uint8)
    ids = np.ones((600, 800), np.int32)
    ids[:, 400:403] = 2
    drawing = draw_panoptic(image, make_result(ids, ["grass", "orange pole"]), legend=False)
    color = class_colors(["grass", "orange pole"])[1, ::-1].astype(float)
    assert np.abs(drawing[300, 401] - (100 + color) / 2).max() <= 2


def test_swatches_have_the_color_of_the_regions():
    image = np.full((400, 600, 3), 200, np.uint8)
    ids = np.zeros((400, 600), np.int32)
    ids[50:350, 50:550] = 1
    drawing = draw_panoptic(image, make_result(ids, ["sea"]), legend=True)
    panel = drawing[400:].reshape(-1, 3)
    fill = drawing[70, 70].astype(int)
    assert (np.abs(panel - fill).max(axis=1) <= 12).sum() > 50


def test_mean_colors():
    image = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    image[:, 300:, 0] //= 2
    ids = halves(400, 600)
    ids[300:] = 0
    result = make_result(ids, ["cat", "dog"])
    drawing = draw_panoptic(image, result, fill="mean")
    means = [image[:300, :300].mean(axis=(0, 1)), image[:300, 300:].mean(axis=(0, 1))]
    for x, mean in ((30, means[0]), (570, means[1])):
        assert np.abs(drawing[30, x] - mean).max() <= 0.5
    assert np.abs(drawing[390, 30] - 0.75 * image[390, 30]).max() <= 0.5  # void
    mixed = draw_panoptic(image, result, fill="mean", alpha=0.5)
    assert np.abs(mixed[30, 30] - (image[30, 30] + means[0]) / 2).max() <= 1
    assert not np.array_equal(means, class_colors(["cat", "dog"])[:, ::-1])


def test_only_numbers_that_the_legend_lists_are_drawn():
    ids = np.zeros((600, 800), np.int32)
    for i in range(9):
        ids[20:44, 40 + 60 * i : 64 + 60 * i] = i + 1
    image = np.full((600, 800, 3), 100, np.uint8)
    drawn = _color_segments(make_result(ids, ["hippopotamus"] * 9))
    _find_boxes(ids, drawn)
    _write_names(Image.fromarray(image), ids, drawn, 16)
    assert [item.number for item in drawn] == [1, 2, 3, 4] + [None] * 5
    assert _legend_entries(drawn, {}, make_result(ids, ["a"] * 9))[0].numbers == (1, 2, 3, 4)


def test_small_images_are_enlarged_with_smooth_borders():
    ranks = np.zeros((20, 20), np.int32)
    ranks[np.tril_indices(20)] = 1
    large = _enlarge(ranks, 8)
    rows, columns = np.nonzero(large[:, 1:] != large[:, :-1])
    # A diagonal: steps of the enlarged border are much shorter than the 8 pixels of a copy.
    assert large.shape == (160, 160) and np.diff(columns).max() <= 2
    assert set(np.unique(large)) == {0, 1}


def test_deepest_box():
    mask = np.zeros((100, 200), np.uint8)
    mask[20:80, 50:150] = 1
    x, y = deepest_box(mask, 60, 20)
    assert abs(x - 100) <= 6 and abs(y - 50) <= 3
    assert deepest_box(mask, 110, 20) is None and deepest_box(mask, 60, 70) is None
    ring = np.ones((100, 200), np.uint8)
    ring[30:70, 20:180] = 0
    x, y = deepest_box(ring, 40, 16)
    box = ring[y - 8 : y + 8, x - 20 : x + 20]
    assert box.size and box.mean() > 0.95


@pytest.mark.parametrize("seed", range(5))
def test_deepest_box_is_inside_the_mask(seed):
    rng = np.random.default_rng(seed)
    canvas = Image.new("L", (300, 240))
    ImageDraw.Draw(canvas).polygon(
        [tuple(p) for p in rng.uniform((0, 0), (300, 240), (6, 2))], fill=1
    )
    mask = np.asarray(canvas)
    spot = deepest_box(mask, 48, 16)
    if spot is not None:
        x, y = spot
        box = mask[y - 8 : y + 8, x - 24 : x + 24]
        assert box.shape == (16, 48) and box.mean() > 0.97


def test_legend_only_if_needed():
    image = np.full((400, 600, 3), 128, np.uint8)
    ids = halves(400, 600)
    needed = draw_panoptic(image, make_result(ids, ["cat", "dog"]), legend=None)
    assert needed.shape == image.shape
    ids[10:14, 10:14] = 3
    with_legend = draw_panoptic(image, make_result(ids, ["cat", "dog", "fly"]), legend=None)
    assert with_legend.shape[0] > 400 and with_legend.shape[1] == 600
    never = draw_panoptic(image, make_result(ids, ["cat", "dog", "fly"]))
    assert never.shape == image.shape
    assert (
        draw_panoptic(image, make_result(halves(400, 600), ["a", "b"]), legend=True).shape[0] > 400
    )
    tall = np.full((1600, 200, 3), 128, np.uint8)
    beside = draw_panoptic(tall, make_result(halves(1600, 200), ["a", "b"]), legend=True)
    assert beside.shape[0] == 1600 and beside.shape[1] > 200


def test_notice():
    image = np.full((400, 600, 3), 128, np.uint8)
    result = make_result(halves(400, 600), ["cat", "dog"])
    drawing = draw_panoptic(image, result, notice="random weights " * 20)
    assert drawing.shape == image.shape and drawing[1, 1].tolist() == [61, 196, 255]
    assert (drawing[200:] == draw_panoptic(image, result)[200:]).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 4000), (4000, 3), (20, 30)])
def test_any_size(shape):
    ids = np.ones(shape, np.int32)
    ids[:, shape[1] // 2 :] = 2 if shape[1] > 1 else 1
    names = ["cat", "dog"][: ids.max()]
    image = np.full((*shape, 3), 128, np.uint8)
    drawing = draw_panoptic(image, make_result(ids, names), notice="random weights")
    assert drawing.shape == image.shape
    drawing = draw_panoptic(image, make_result(ids, names), notice="random weights", legend=True)
    assert max(drawing.shape) >= 480


def test_many_segments():
    ids = np.arange(1, 61, dtype=np.int32).reshape(6, 10).repeat(40, 0).repeat(50, 1)
    names = [f"thing {i % 23}" for i in range(60)]
    drawing = draw_panoptic(np.full((*ids.shape, 3), 99, np.uint8), make_result(ids, names))
    assert drawing.shape == (*ids.shape, 3)


def test_no_segments():
    image = np.full((400, 600, 3), 128, np.uint8)
    drawing = draw_panoptic(image, make_result(np.zeros((400, 600)), []))
    assert (drawing == 96).all()


@pytest.mark.parametrize(
    "name",
    [
        "машина",
        "犬と猫",
        "شجرة",
        "🦒",
        "naïve café",
        "a\nb\tc\x00d",
        "word " * 500,
        "x" * 5000,
        "\u202e",
    ],
)
def test_any_name(name):
    image = np.full((300, 500, 3), 128, np.uint8)
    drawing = draw_panoptic(image, make_result(halves(300, 500), [name, "dog"]), legend=True)
    assert drawing.shape[0] > 300 and drawing.shape[1:] == (500, 3)
    assert len(np.unique(drawing[300:])) > 2  # the legend has text


def test_wrong_input():
    result = make_result(halves(4, 6), ["cat", "dog"])
    for image in (np.zeros((4, 7, 3), np.uint8), np.zeros((4, 6, 3)), np.zeros((4, 6), np.uint8)):
        with pytest.raises(ValueError, match="of the map's size"):
            draw_panoptic(image, result)
    with pytest.raises(ValueError, match="no panoptic map"):
        draw_panoptic(np.zeros((4, 6, 3), np.uint8), SegmentationResult())
    with pytest.raises(ValueError, match="alpha"):
        draw_panoptic(np.zeros((4, 6, 3), np.uint8), result, alpha=3)
    with pytest.raises(ValueError, match="channel_order"):
        draw_panoptic(np.zeros((4, 6, 3), np.uint8), result, channel_order="grb")
    with pytest.raises(ValueError, match="fill='average'"):
        draw_panoptic(np.zeros((4, 6, 3), np.uint8), result, fill="average")


def test_text_helpers():
    assert tidy(" a \n b\x07", 10) == "a b" and tidy("abcdefghij", 8) == "abcde..."
    assert halve("traffic light") == "traffic\nlight" and halve("car") is None
    draw = ImageDraw.Draw(Image.new("RGB", (10, 10)))
    lines = wrap(draw, "one two three four five", 12, 60)
    assert " ".join(lines) == "one two three four five" and len(lines) > 1
    assert all(text_size(draw, line, 12)[0] <= 60 for line in lines)
    assert wrap(draw, "", 12, 60) == []
    assert font_for("abc", 12).getname() != font_for("машина", 12).getname()


@pytest.fixture
def visualizer():
    built = VISUALIZERS.build(dict(type="OpenVocabVisualizer", name="visualizer_of_a_test"))
    built.dataset_meta = dict(classes=("cat", "sky"))
    return built


def test_visualizer_draws_maps_of_odise_mm_and_mmdet(visualizer, tmp_path):
    image = np.full((400, 600, 3), 128, np.uint8)
    sample = DetDataSample()
    infos = [
        dict(id=i, category_id=i - 1, category_name=n, isthing=i == 1, score=0.9, area=120_000)
        for i, n in ((1, "cat"), (2, "sky"))
    ]
    ids = halves(400, 600)
    sample.pred_panoptic_seg = PixelData(
        sem_seg=torch.from_numpy(ids)[None], metainfo=dict(segments_info=infos)
    )
    # mmdet's ground truth: class + 1000 x instance; 2 (the number of classes) is void.
    ground_truth = np.where(ids == 1, 1000, 1)
    ground_truth[:50] = 2
    sample.gt_panoptic_seg = PixelData(sem_seg=torch.from_numpy(ground_truth)[None])
    sample.pred_sem_seg = PixelData(sem_seg=torch.zeros(1, 400, 600, dtype=torch.int64))
    sample.pred_instances = InstanceData(scores=torch.ones(1), labels=torch.zeros(1).long())
    visualizer.add_datasample("x", image, sample, out_file=str(tmp_path / "x.png"))
    # Read the written image, because ``get_image`` renders it again through matplotlib's canvas.
    drawn = np.asarray(Image.open(tmp_path / "x.png"))
    assert drawn.shape == (400, 1200, 3)
    expected = draw_panoptic(image, make_result(ids, ["cat", "sky"]), channel_order="rgb")
    assert np.array_equal(drawn[:, 600:], expected)
    assert np.array_equal(drawn[350:, 20:100], expected[350:, 20:100])  # same colors on the left
    assert (drawn[5, 5] == 96).all()  # void
    assert "pred_sem_seg" in sample  # the caller's sample is not modified


def test_mmdet_maps_with_many_classes():
    """Class 255 is a normal class; with more than 999 classes, mmdet's ids are ambiguous."""
    names = [f"class {i}" for i in range(300)]
    numbers = torch.tensor([[[255, 299, 300, 1255, 7000]]])
    result = SegmentationResult.from_panoptic(PixelData(sem_seg=numbers), names)
    segments = {segment.id: segment for segment in result.segments}
    found = [segments.get(int(id_)) for id_ in result.panoptic[0]]
    assert [segment and segment.label for segment in found] == [255, 299, None, 255, 0]
    assert [segment and segment.is_thing for segment in found] == [False, False, None, True, True]
    with pytest.raises(ValueError, match="at most 999 classes"):
        SegmentationResult.from_panoptic(
            PixelData(sem_seg=numbers), [f"class {i}" for i in range(1000)]
        )
