"""One inferencer in many threads: every call gives the same results as alone."""

from __future__ import annotations

import copy
import pickle
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config

from odise_mm.annotations.panoptic_io import read_coco_panoptic
from odise_mm.apis import ConfigError, OpenVocabInferencer
from odise_mm.models.backbones.diffusion.condition import PromptEncoder
from odise_mm.models.frozen import same_random_weights
from odise_mm.structures import SegmentationResult
from odise_mm.utils.locks import Lock
from tests.support.fake_segmentor import CONFIG
from tests.support.parts import random_image, segmentor_config

THREADS = 8
WORDS = [f"{kind} {i}" for kind in ("red", "old", "tiny") for i in range(12)]
WRITER = dict(
    type="HeuristicCaptioner",
    places=["a street", "a kitchen", "a beach"],
    objects=["a cup", "a dog", "a tree", "a car"],
    num_places=1,
    num_objects=2,
)


def small_inferencer(**changes: Any) -> OpenVocabInferencer:
    """The whole model, but much smaller than that of the tiny config."""
    model = segmentor_config(test_cfg=dict(overlap_threshold=0.02), **changes)
    model.backbone.taps = dict(vae_encoder=(5, 7), unet=(5, 8))
    model.head.pixel_decoder.encoder.num_layers = 1
    model.head.transformer_decoder.num_layers = 1
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    steps = [
        dict(type="LoadImage"),
        dict(type="ResizeKeepRatio", scale=(64, 64)),  # one tile each
        dict(type="mmdet.PackDetInputs", meta_keys=keys),
    ]
    return OpenVocabInferencer(
        Config(dict(model=model, test_pipeline=steps, random_weights=True)), device="cpu"
    )


def requests(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Calls with different names, sizes and settings; some names occur in several calls."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        names = rng.sample(WORDS, rng.randint(2, 20))
        half = rng.randint(1, len(names) - 1)
        sizes = [
            (rng.randint(20, 70), rng.randint(20, 90)) for _ in range(1 + (rng.random() < 0.1))
        ]
        images = [random_image(*size, seed=rng.randint(0, 9)).numpy() for size in sizes]
        made.append(
            dict(
                images=[np.ascontiguousarray(image.transpose(1, 2, 0)) for image in images],
                texts="; ".join(names[:half]),
                stuff_texts="; ".join(names[half:]),
                batch_size=rng.choice((1, 2)),
                overlap_threshold=rng.choice((0.0, 0.05)),
                instance=rng.random() < 0.5,
                progress=False,
            )
        )
    return made


def in_threads(work: Callable[[Any], Any], items: Sequence[Any], threads: int = THREADS) -> list:
    """Return the results in order; all threads start at the same time."""
    start = threading.Barrier(threads)

    def begin(item: Any, index: int) -> Any:
        if index < threads:
            start.wait(timeout=60)
        return work(item)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(begin, items, range(len(items))))


def assert_equal(one: SegmentationResult, other: SegmentationResult) -> None:
    assert one.to_dict() == other.to_dict()  # names, labels, areas and scores
    for field in ("panoptic", "semantic"):
        assert np.array_equal(getattr(one, field), getattr(other, field))
    assert (one.instances is None) == (other.instances is None)
    if one.instances is not None:
        for field in ("labels", "scores", "boxes", "masks"):
            ours, theirs = getattr(one.instances, field), getattr(other.instances, field)
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("distinct", "count", "changes"),
    [(20, 100, {}), (8, 24, dict(captioner=WRITER))],
    ids=["implicit captioner", "captioner that writes"],
)
def test_calls_in_many_threads_give_the_same_results_as_alone(
    distinct: int, count: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    calls = requests(distinct)
    first, second = (
        small_inferencer(**changes),
        small_inferencer(
            text_encoder=dict(type="TextEncoder", cache_file=str(tmp_path / "names.sqlite")),
            **changes,
        ),
    )
    alone = [first(**call) for call in calls]
    found = {segment.name for results in alone for r in results for segment in r.segments}
    assert len(found) > 5  # the calls give different names
    before = second.model.vocabulary, dict(second.model.test_cfg)

    def work(numbered: tuple[int, dict[str, Any]]) -> list[SegmentationResult]:
        number, call = numbered
        return list(second.stream(**call)) if number % 3 == 0 else second(**call)

    numbered = [(number, calls[number % distinct]) for number in range(count)]
    for number, results in enumerate(in_threads(work, numbered)):
        for one, other in zip(alone[number % distinct], results, strict=True):
            assert_equal(one, other)
    assert (second.model.vocabulary, second.model.test_cfg) == before


def test_the_model_in_many_threads() -> None:
    inferencer = small_inferencer()
    calls = requests(16, seed=1)

    def work(call: dict[str, Any]) -> list[tuple]:
        names = inferencer.make_vocabulary(call["texts"], call["stuff_texts"])
        made = []
        for image in call["images"]:
            size = image.shape[:2]
            read = dict(img=image, img_path=None, img_id=0, img_shape=size, ori_shape=size)
            data = inferencer.pipeline(read)
            data = dict(inputs=[data["inputs"]], data_samples=[data["data_samples"]])
            (sample,) = inferencer.model.test_step(data, names, dict(overlap_threshold=0.0))
            found = sample.pred_panoptic_seg
            made.append((found.segments_info, found.sem_seg.tolist()))
        return made

    alone = [work(call) for call in calls]
    assert in_threads(work, calls) == alone


def test_settings_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    inferencer = small_inferencer()
    image = requests(1)[0]["images"][0]
    few = inferencer(image, texts="cat; dog", topk=3, semantic=False)[0]
    assert len(few.instances) <= 3 and few.semantic is None
    many = inferencer(image, texts="cat; dog")[0]
    assert len(many.instances) > 3 and many.semantic is not None
    for name, wrong in (("topk", -1), ("panoptic", "yes"), ("min_area", 1.5), ("alpha", 2)):
        with pytest.raises(ConfigError, match=f"^{name}={wrong!r}: must be"):
            inferencer.stream(image, **{name: wrong})
    with pytest.raises(TypeError, match="unknown setting 'overlaps' .known settings: score_thr"):
        inferencer.stream(image, overlaps=0.5)
    with pytest.warns(FutureWarning, match="test_cfg=dict"):
        old = inferencer(image, texts="cat; dog", test_cfg=dict(topk=3))[0]
    assert len(old.instances) == len(few.instances)


def test_the_models_vocabulary_is_the_default() -> None:
    inferencer = small_inferencer()
    image = requests(1)[0]["images"][0]
    inferencer.model.vocabulary = inferencer.make_vocabulary("zeppelin; dune")
    assert inferencer(image)[0].class_names == ("zeppelin", "dune")
    assert inferencer(image, texts="cat")[0].class_names == ("cat",)
    assert inferencer(image)[0].class_names == ("zeppelin", "dune")


@pytest.fixture
def fake(tmp_path: Path) -> OpenVocabInferencer:
    path = tmp_path / "fake.py"
    path.write_text(CONFIG)
    return OpenVocabInferencer(path, device="cpu")


def test_output_folders_of_concurrent_calls(fake: OpenVocabInferencer, tmp_path: Path) -> None:
    calls = requests(16, seed=2)

    def work(numbered: tuple[int, dict[str, Any]]) -> list[SegmentationResult]:
        number, call = numbered
        return fake(**call, out_dir=tmp_path / f"out{number}", return_vis=True)

    for number, results in enumerate(in_threads(work, list(enumerate(calls)))):
        read = read_coco_panoptic(tmp_path / f"out{number}" / "panoptic.json")
        for one, other in zip(results, read, strict=True):
            assert np.array_equal(one.panoptic, other.panoptic)
            assert one.segments == other.segments and one.visualization is not None


def test_progress_bars_of_concurrent_calls(
    fake: OpenVocabInferencer, capsys: pytest.CaptureFixture
) -> None:
    fake.console._force_terminal = True  # rich allows only one live display there
    images = [np.full((20, 30, 3), gray, np.uint8) for gray in range(6)]
    results = in_threads(lambda names: fake(images, texts=names), ["a; b", "c", "d; e"] * 4)
    assert [len(r) for r in results] == [6] * 12
    assert [r[0].segments[0].name for r in results[:3]] == ["a", "c", "d"]
    # One stream is interrupted by another call, and then closed early.
    begun = fake.stream(images, texts="a; b")
    next(begun)
    assert len(fake(images, texts="c")) == 6
    assert next(begun).segments[0].name == "a"
    begun.close()
    assert fake._progress._progress is None  # no display is left running
    assert "6/6" in capsys.readouterr().err


def test_the_progress_bar_stops_if_a_call_fails(fake: OpenVocabInferencer) -> None:
    fake.model.fail = "a bug"
    with pytest.raises(RuntimeError, match="a bug"):
        fake([np.zeros((8, 8, 3), np.uint8)] * 5)
    assert fake._progress._progress is None


def test_the_pipeline_is_used_by_one_thread_at_a_time(fake: OpenVocabInferencer) -> None:
    plain, inside, most = fake.pipeline, threading.Semaphore(1), []

    def pipeline(data: dict) -> dict:
        most.append(inside.acquire(blocking=False))
        try:
            return plain(data)
        finally:
            if most[-1]:
                inside.release()

    fake.pipeline = pipeline
    in_threads(lambda call: fake(**call), requests(16, seed=3))
    assert all(most)


def test_inferencers_can_be_built_concurrently() -> None:
    models = in_threads(lambda _: small_inferencer().model, range(4), threads=4)
    states = [model.state_dict() for model in models]
    for state in states[1:]:
        assert all(torch.equal(value, states[0][key]) for key, value in state.items())
    frozen = [dict(model.backbone.named_parameters()) for model in models]
    for own in frozen[1:]:
        assert all(torch.equal(value, frozen[0][key]) for key, value in own.items())


def test_random_weights_are_the_same_in_all_threads() -> None:
    def draw(_: int) -> list[float]:
        with same_random_weights():
            return [torch.nn.Linear(3, 3).weight.sum().item() for _ in range(20)]

    torch.manual_seed(5)
    wanted = torch.rand(4)
    torch.manual_seed(5)
    drawn = in_threads(draw, range(32))
    assert all(one == drawn[0] for one in drawn)
    assert torch.equal(torch.rand(4), wanted)


def test_lazy_loading_of_text_encoders_does_not_change_the_random_state() -> None:
    prompts: PromptEncoder = small_inferencer().model.backbone._prompts
    torch.manual_seed(5)
    wanted = torch.rand(4)
    torch.manual_seed(5)
    prompts(["a photo"], "cpu")
    assert torch.equal(torch.rand(4), wanted)


def test_copies_of_a_held_lock_are_free() -> None:
    lock = Lock()
    with lock, lock:  # the same thread may enter again
        for other in (copy.deepcopy(lock), pickle.loads(pickle.dumps(lock))):
            entered = []

            def enter(other: Lock = other, entered: list[bool] = entered) -> None:
                with other:
                    entered.append(True)

            thread = threading.Thread(target=enter, daemon=True)
            thread.start()
            thread.join(timeout=10)
            assert entered == [True]


def test_a_model_is_copied_with_its_locks() -> None:
    model = small_inferencer().model
    copied = copy.deepcopy(model)
    assert copied.clip is not model.clip
    texts = ["cat", "dog"]
    encoders = [m.classifiers[0].text_encoder for m in (model, copied)]
    assert torch.equal(encoders[0](texts), encoders[1](texts))
