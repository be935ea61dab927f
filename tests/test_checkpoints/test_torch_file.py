"""Files of torch: damage is detected, and repacked archives can be read."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from odise_mm.checkpoints.safe_loading import load_state_dict, load_training_state
from odise_mm.errors import CheckpointError

WEIGHTS = {
    "a": torch.arange(4000.0).view(40, 100) + 0.5,
    "b": torch.linspace(-1, 1, 33),
    "half": torch.linspace(-1, 1, 33).half(),
    "count": torch.tensor(7),
    "flag": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
}


def assert_weights(state: dict[str, Tensor]) -> None:
    assert state.keys() == WEIGHTS.keys()
    for key, value in WEIGHTS.items():
        assert state[key].dtype == value.dtype and torch.equal(state[key], value), key


def saved(content: object = WEIGHTS, **how: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **how)
    return stream.getvalue()


def entries(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        return {name: source.read(name) for name in source.namelist()}


def packed(files: dict[str, bytes], method: int = zipfile.ZIP_STORED, **how: object) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method, **how) as target:
        for name, data in files.items():
            target.writestr(name, data)
    return stream.getvalue()


def renamed(folder: str) -> Callable[[bytes], bytes]:
    return lambda data: packed({n.replace("archive/", folder): d for n, d in entries(data).items()})


REPACKED = {
    "deflated": lambda data: packed(entries(data), zipfile.ZIP_DEFLATED),
    "bzip2": lambda data: packed(entries(data), zipfile.ZIP_BZIP2),
    "lzma": lambda data: packed(entries(data), zipfile.ZIP_LZMA),
    "stored anywhere": lambda data: packed(entries(data)),
    "reversed": lambda data: packed(dict(reversed(entries(data).items()))),
    "other folder": renamed("my weights/"),
    "no folder": renamed(""),
    "two folders": renamed("a/b/"),
    "entries of folders": lambda data: packed(
        {"archive/": b"", "archive/data/": b"", **entries(data)}
    ),
    "junk of an operating system": lambda data: packed(
        {**entries(data), "__MACOSX/archive/._data.pkl": b"junk", ".DS_Store": b"junk"}
    ),
    "extra bytes at the beginning": lambda data: b"PK" + bytes(62) + data,
}


@pytest.mark.parametrize("how", REPACKED)
def test_repacked_archives(how: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(REPACKED[how](saved()))
    assert_weights(load_state_dict(tmp_path / "w.pth"))
    assert_weights(load_training_state(tmp_path / "w.pth"))
    kept = load_state_dict(tmp_path / "w.pth", keep=lambda key: key == "b")
    assert list(kept) == ["b"] and torch.equal(kept["b"], WEIGHTS["b"])


def test_written_without_checksums(tmp_path: Path) -> None:
    """With this setting of torch, all checksums are zero."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    with zipfile.ZipFile(tmp_path / "w.pth") as archive:
        assert archive.testzip() is not None
    assert_weights(load_state_dict(tmp_path / "w.pth"))


@pytest.mark.parametrize("key", ["a", "b", "half", "count", "flag"])
@pytest.mark.parametrize("pack", [lambda data: data, REPACKED["deflated"], REPACKED["no folder"]])
def test_one_changed_bit_in_a_tensor(
    key: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    archive = pack(saved())
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        number = list(WEIGHTS).index(key)
        name = next(n for n in source.namelist() if n.endswith(f"data/{number}"))
        info = source.getinfo(name)
    start = info.header_offset + 30
    start += int.from_bytes(archive[start - 4 : start - 2], "little")
    start += int.from_bytes(archive[info.header_offset + 28 :][:2], "little")
    spoilt = bytearray(archive)
    spoilt[start + info.compress_size // 2] ^= 1 << 6
    (tmp_path / "w.pth").write_bytes(spoilt)
    if info.compress_type != zipfile.ZIP_STORED and info.file_size < 10:
        return  # some bits of compressed data have no meaning
    for read in (load_state_dict, load_training_state):
        with pytest.raises(CheckpointError, match=f"damaged .*(data/{number}|decompress)") as error:
            read(tmp_path / "w.pth")
        assert "\n" not in str(error.value)
    # The other tensors are intact, and only tensors that are read are checked.
    others = load_state_dict(tmp_path / "w.pth", keep=lambda other: other != key)
    assert all(torch.equal(value, WEIGHTS[k]) for k, value in others.items())


def test_one_changed_bit_anywhere_in_the_archive(tmp_path: Path) -> None:
    """The file is rejected with a one-line message or read correctly, but never read wrongly."""
    archive = saved({"w": WEIGHTS["b"], "note": "text"})
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.choice(len(archive), 400, replace=False):
        spoilt = bytearray(archive)
        spoilt[place] ^= 1 << rng.integers(8)
        (tmp_path / "w.pth").write_bytes(spoilt)
        try:
            state = load_state_dict(tmp_path / "w.pth")
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert list(state) == ["w"] and torch.equal(state["w"], WEIGHTS["b"])
    assert refused > 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.pop("archive/data/0"), "archive/data/0 is missing"),
        (lambda files: files.update({"archive/data/0": b"1234"}), "has 4 bytes instead of 16000"),
        (
            lambda files: files.update({"archive/data/0": files["archive/data/0"] + b"1"}),
            "has 16001 bytes instead of 16000",
        ),
        (lambda files: files.update({"other/data.pkl": b""}), "2 files of torch.save"),
        (lambda files: files.pop("archive/data.pkl"), "is a zip archive, but not a checkpoint"),
    ],
)
def test_sizes_and_entries(change: Callable, message: str, tmp_path: Path) -> None:
    files = entries(saved())
    change(files)
    (tmp_path / "w.pth").write_bytes(packed(files))
    with pytest.raises(CheckpointError, match=message):
        load_state_dict(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_with_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(saved())
    with zipfile.ZipFile(tmp_path / "w.pth", "a") as archive:
        archive.writestr("archive/data/0", bytes(16000))
    with pytest.raises(CheckpointError, match="two entries with the same name"):
        load_state_dict(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (2, 3), (3, 1)),
        (0, (2,), (4,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (True, (2,), (1,)),
        (0, (1 << 70,), (1,)),
    ],
)
def test_views_outside_of_their_storage(
    offset: int, shape: tuple, stride: tuple, tmp_path: Path
) -> None:
    class View:
        def __reduce__(self) -> tuple:
            storage = torch.ones(4).storage()
            return torch._utils._rebuild_tensor_v2, (storage, offset, shape, stride, False, {})

    (tmp_path / "w.pth").write_bytes(saved({"w": View()}))
    with pytest.raises(CheckpointError, match="damaged"):
        load_state_dict(tmp_path / "w.pth")


def test_tensors_share_memory_as_in_the_file(tmp_path: Path) -> None:
    table = torch.arange(12.0).view(3, 4)
    views = {"whole": table, "row": table[1], "turned": table.T, "wide": table[0, 0].expand(10**9)}
    torch.save(views, tmp_path / "w.pth")
    state = load_state_dict(tmp_path / "w.pth")
    assert torch.equal(state["row"], table[1]) and torch.equal(state["turned"], table.T)
    assert state["wide"].shape == (10**9,) and state["wide"].stride() == (0,)
    assert state["row"].untyped_storage().data_ptr() == state["whole"].data_ptr()


@pytest.mark.parametrize("older", [False, True])
def test_dtypes(older: bool, tmp_path: Path) -> None:
    kinds = [torch.float64, torch.bfloat16, torch.int8, torch.uint8, torch.int16, torch.int32]
    kinds += [torch.complex64] if older else [torch.complex64, torch.uint16, torch.float8_e4m3fn]
    state = {str(kind): torch.tensor([0, 1, 2]).to(kind) for kind in kinds}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=not older)
    loaded = load_state_dict(tmp_path / "w.pth")
    for key, value in state.items():
        assert loaded[key].dtype == value.dtype
        assert torch.equal(loaded[key].view(torch.uint8), value.view(torch.uint8)), key


def test_archive_of_another_byte_order(tmp_path: Path) -> None:
    files = entries(saved({"w": WEIGHTS["b"]}))
    files["archive/byteorder"] = b"big"
    files["archive/data/0"] = WEIGHTS["b"].numpy().astype(">f4").tobytes()
    (tmp_path / "w.pth").write_bytes(packed(files))
    assert torch.equal(load_state_dict(tmp_path / "w.pth")["w"], WEIGHTS["b"])


def test_legacy_format_with_a_wrong_storage_size(tmp_path: Path) -> None:
    archive = saved(_use_new_zipfile_serialization=False)
    (tmp_path / "w.pth").write_bytes(archive)
    assert_weights(load_state_dict(tmp_path / "w.pth"))
    assert_weights(load_training_state(tmp_path / "w.pth"))
    place = archive.index((4000).to_bytes(8, "little"))
    spoilt = archive[:place] + (4001).to_bytes(8, "little") + archive[place + 8 :]
    (tmp_path / "w.pth").write_bytes(spoilt)
    with pytest.raises(CheckpointError, match="has the wrong size"):
        load_state_dict(tmp_path / "w.pth")


def test_training_states_that_contain_themselves(tmp_path: Path) -> None:
    state: dict = {"state_dict": {"w": torch.ones(2)}, "pair": (1, torch.zeros(1))}
    state["again"] = [state]
    torch.save(state, tmp_path / "w.pth")
    loaded = load_training_state(tmp_path / "w.pth")
    assert loaded["again"][0] is loaded and loaded["state_dict"]["w"].tolist() == [1, 1]
    assert torch.equal(loaded["pair"][1], torch.zeros(1))
