"""SeededSampler: the stream of images depends only on the seed and the position."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from odise_mm.datasets import PanopticDataset, SeededIndex, SeededSampler, samplers
from odise_mm.registry import DATASETS
from tests.support.small_coco import write_small_coco


def stream(size: int, count: int, start: int = 0, **kwargs) -> list[tuple[int, int]]:
    """Return (index, seed) of the first items."""
    sampler = SeededSampler(range(size), **kwargs)
    sampler.start_at(start)
    return [(int(index), index.seed) for index in islice(sampler, count)]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch):
    """Act as one of several processes."""

    def act_as(rank: int, world_size: int) -> None:
        monkeypatch.setattr(samplers, "get_dist_info", lambda: (rank, world_size))

    return act_as


def test_every_epoch_is_a_new_permutation() -> None:
    indices = [index for index, _ in stream(11, 33, seed=4)]
    epochs = [indices[:11], indices[11:22], indices[22:]]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert stream(11, 33, seed=4) != stream(11, 33, seed=5)
    assert [i for i, _ in stream(3, 7, seed=4, shuffle=False)] == [0, 1, 2, 0, 1, 2, 0]


def test_seeds_differ_between_epochs() -> None:
    seeds = Counter(seed for _, seed in stream(11, 330, seed=4))
    assert max(seeds.values()) == 1 and all(0 <= seed < 2**32 for seed in seeds)
    # Seeds depend only on (seed, epoch, index), not on the order.
    assert dict(stream(11, 11, seed=4)) == dict(stream(11, 11, seed=4, shuffle=False))


def test_the_stream_never_changes() -> None:
    """Compare with recorded values: checkpoints must resume with other versions of NumPy."""
    assert stream(5, 7, seed=2024) == [
        (4, 1060566159),
        (2, 3714362342),
        (0, 3345857025),
        (1, 347730110),
        (3, 1397297171),
        (1, 691184600),
        (3, 1741256945),
    ]


def test_start_at_continues_the_stream() -> None:
    whole = stream(7, 60, seed=1)
    for start in (0, 1, 6, 7, 8, 41):
        assert stream(7, 60 - start, start, seed=1) == whole[start:]
    assert stream(7, 3, 10**9, seed=1)  # anywhere, at once
    with pytest.raises(ValueError, match="not -1"):
        SeededSampler(range(3), seed=0).start_at(-1)


@pytest.mark.parametrize("start", [0, 12])
def test_processes_share_each_batch(processes, start: int) -> None:
    """2 x 2 and 4 x 1 see the same images per iteration as 1 x 4, also across epochs."""
    alone = stream(7, 40, start, seed=3)
    for world_size in (2, 4):
        per_rank = 4 // world_size
        shares = []
        for rank in range(world_size):
            processes(rank, world_size)
            shares.append(stream(7, 10 * per_rank, start, seed=3))
        for iteration in range(10):
            part = slice(iteration * per_rank, (iteration + 1) * per_rank)
            joined = [item for share in shares for item in share[part]]
            assert sorted(joined) == sorted(alone[4 * iteration : 4 * iteration + 4])
    processes(0, 1)


def test_length_of_an_epoch(processes) -> None:
    assert len(SeededSampler(range(7), seed=0)) == 7
    processes(1, 2)
    assert len(SeededSampler(range(7), seed=0)) == 4


def test_default_seed_is_random() -> None:
    seeds = {SeededSampler(range(3)).seed for _ in range(5)}
    assert len(seeds) > 1


def test_seeded_index_is_an_int() -> None:
    index = SeededIndex(3, seed=9)
    for copy in (index, pickle.loads(pickle.dumps(index))):
        assert copy == 3 and copy.seed == 9 and "abcd"[copy] == "d"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PanopticDataset:
    pipeline = [
        dict(type="LoadImage"),
        dict(type="LoadPanopticMap"),
        dict(type="mmdet.RandomFlip", prob=0.5),
        dict(type="LargeScaleJitter", scale=(48, 48)),
        dict(type="mmdet.RandomCrop", crop_size=(48, 48)),
        dict(type="mmdet.Pad", size=(48, 48), pad_val=dict(img=(128, 128, 128), seg=0)),
        dict(type="PanopticMapToMasks"),
        dict(type="DrawWords"),
        dict(type="mmdet.PackDetInputs", meta_keys=("img_id", "words")),
    ]
    coco = write_small_coco(tmp_path_factory.mktemp("coco"))
    phrases = '{"phrases": {"7": [["a", "b", "c"], ["d", "e"]], "3": [["f", "g", "h"]]}}'
    Path(coco.root, "phrases.json").write_text(phrases)
    return DATASETS.build(coco.config(pipeline=pipeline, phrases_file="phrases.json"))


def batches(dataset: PanopticDataset, count: int, start: int = 0, workers: int = 0) -> list[tuple]:
    """Return the batches of a data loader built by mmengine's Runner, as plain values."""
    loader = Runner.build_dataloader(
        dict(
            batch_size=2,
            num_workers=workers,
            dataset=dataset,
            sampler=dict(type=SeededSampler),
        ),
        seed=21,
    )
    loader.sampler.start_at(start)
    found = []
    for batch in islice(loader, count):
        for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
            masks = sample.gt_instances.masks.masks
            found.append((sample.img_id, sample.words, image, masks, sample.gt_instances.labels))
    return found


def same(first: list[tuple], second: list[tuple]) -> bool:
    return len(first) == len(second) and all(
        a[:2] == b[:2]
        and torch.equal(a[2], b[2])
        and np.array_equal(a[3], b[3])
        and torch.equal(a[4], b[4])
        for a, b in zip(first, second, strict=True)
    )


def test_items_do_not_depend_on_workers_or_earlier_items(dataset: PanopticDataset) -> None:
    expected = batches(dataset, 5)
    assert len({item[2].numpy().tobytes() for item in expected}) >= 8, "of three images"
    assert any(item[1] for item in expected)
    np.random.seed(99)
    assert same(batches(dataset, 5), expected)
    assert same(batches(dataset, 5, workers=2), expected)
    assert same(batches(dataset, 3, start=4), expected[4:])


def test_a_plain_index_is_not_seeded(dataset: PanopticDataset) -> None:
    np.random.seed(5)
    first, second = dataset[0]["inputs"], dataset[0]["inputs"]
    assert not torch.equal(first, second)
    np.random.seed(5)
    assert torch.equal(dataset[0]["inputs"], first)
