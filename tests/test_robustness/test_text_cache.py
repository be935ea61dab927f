"""The cache file of text embeddings: if it is unusable, names are embedded without it."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from odise_mm.errors import ConfigError
from odise_mm.models import TextEncoder
from odise_mm.models.clip import text_cache
from odise_mm.models.clip.text_cache import TextCache
from tests.support.parts import clip

NAMES = ["cat", "a photo of a dog.", "street"]


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(text_cache, "print_log", lambda text, **_: messages.append(text))
    return messages


def embed(file: Path | str) -> torch.Tensor:
    """Embed twice with a new encoder, so that repeated warnings would be noticed."""
    encoder = TextEncoder(clip(), cache_file=file)
    found = encoder(NAMES)
    encoder([f"more {name}" for name in NAMES])
    return found


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    file = tmp_path / "names.sqlite"
    embed(file)
    return file


def change(file: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(statement, values)


def assert_steps_aside(file: Path | str, warnings: list[str], word: str = "") -> None:
    assert torch.equal(embed(file), clip().encode_text(NAMES))
    assert len(warnings) == 1 and "cache_file" in warnings[0] and word in warnings[0]


# ------------------------------------------------------------------------------- broken files


def test_a_truncated_file(filled: Path, warnings: list[str]) -> None:
    content = filled.read_bytes()
    filled.write_bytes(content[: len(content) // 2])
    assert_steps_aside(filled, warnings, "malformed")


@pytest.mark.parametrize("content", [b"no database " * 900, bytes(5000), b"7"])
def test_another_kind_of_file(content: bytes, tmp_path: Path, warnings: list[str]) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    assert_steps_aside(file, warnings, "not a database")
    assert file.read_bytes() == content


@pytest.mark.parametrize("table", ["visits (url TEXT)", "embeddings (id INTEGER, vector BLOB)"])
def test_another_database(table: str, tmp_path: Path, warnings: list[str]) -> None:
    file = tmp_path / "history.sqlite"
    change(file, f"CREATE TABLE {table}")
    content = file.read_bytes()
    assert_steps_aside(file, warnings, "something else")
    assert file.read_bytes() == content


def test_a_view_instead_of_a_table(filled: Path, warnings: list[str]) -> None:
    change(filled, "ALTER TABLE embeddings RENAME TO source")
    change(filled, "CREATE VIEW embeddings AS SELECT * FROM source")
    assert_steps_aside(filled, warnings, "something else")


def test_changed_bytes(filled: Path, warnings: list[str]) -> None:
    content = bytearray(filled.read_bytes())
    (stored,) = (clip().encode_text(["cat"]).numpy().tobytes(),)
    place = content.index(stored) + 101
    content[place] ^= 1
    filled.write_bytes(content)
    assert torch.equal(embed(filled), clip().encode_text(NAMES))
    assert warnings == []


@pytest.mark.parametrize(
    "value",
    [
        b"",
        np.zeros(63, np.float32).tobytes(),
        np.zeros(64, np.float16).tobytes(),
        np.zeros(64, np.float64).tobytes(),
        np.zeros(64, np.float32).tobytes(),
        np.zeros(65, np.int32).tobytes(),
        "0" * 260,
        7,
        None,
    ],
)
def test_invalid_values(value: object, filled: Path, warnings: list[str]) -> None:
    change(filled, "UPDATE embeddings SET value = ?", value)
    assert torch.equal(embed(filled), clip().encode_text(NAMES))
    change(filled, "DELETE FROM embeddings WHERE text = ?", NAMES[0])
    with closing(sqlite3.connect(filled)) as database:  # correct values were stored
        query = "SELECT value FROM embeddings WHERE text = ?"
        (stored,) = database.execute(query, (NAMES[2],)).fetchone()
    assert stored[:-4] == clip().encode_text(NAMES)[2].numpy().tobytes()
    assert warnings == []


# ------------------------------------------------------------------------------- places


def test_a_folder(tmp_path: Path, warnings: list[str]) -> None:
    assert_steps_aside(tmp_path, warnings, "not a regular file")


def test_a_pipe(tmp_path: Path, warnings: list[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert_steps_aside(tmp_path / "pipe", warnings, "not a regular file")


def test_a_folder_that_cannot_be_created(tmp_path: Path, warnings: list[str]) -> None:
    (tmp_path / "file").write_text("")
    assert_steps_aside(tmp_path / "file" / "names.sqlite", warnings)


@pytest.mark.parametrize("name", ["a\0b.sqlite", "x" * 300, "\ud800.sqlite"])
def test_invalid_file_names(name: str, tmp_path: Path, warnings: list[str]) -> None:
    file = tmp_path / name
    assert torch.equal(embed(file), clip().encode_text(NAMES))
    assert len(warnings) <= 1  # some file systems accept the last one
    assert all(sign.isprintable() for text in warnings for sign in text)


def test_a_read_only_file(filled: Path, warnings: list[str]) -> None:
    encoder = TextEncoder(clip(), cache_file=filled)
    plain = sqlite3.connect

    def read_only(file: Path, **options: object) -> sqlite3.Connection:
        return plain(f"file:{file}?mode=ro", uri=True, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_cache.sqlite3, "connect", read_only)
        assert torch.equal(encoder(NAMES), clip().encode_text(NAMES))
        assert warnings == []  # reading works
        encoder(["zebra"])
        encoder(["giraffe"])
    assert len(warnings) == 1 and "readonly" in warnings[0]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Limit files to ``size`` bytes, to simulate a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk(filled: Path, warnings: list[str]) -> None:
    encoder = TextEncoder(clip(), cache_file=filled)
    many = [f"thing {i}" for i in range(300)]
    with files_of_at_most(filled.stat().st_size + 1024):
        found = encoder(many)
    assert torch.equal(found[:9], clip().encode_text(many)[:9])
    assert len(warnings) == 1
    del warnings[:]
    assert torch.equal(embed(filled), clip().encode_text(NAMES))  # older entries are kept
    assert warnings == []


def test_a_locked_file(filled: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_cache, "_LOCK_TIMEOUT", 0.1)
    with closing(sqlite3.connect(filled, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert_steps_aside(filled, warnings, "locked")


def test_it_waits_for_a_lock(filled: Path, warnings: list[str]) -> None:
    other = sqlite3.connect(filled, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    with ThreadPoolExecutor(1) as pool, closing(other):
        waiting = pool.submit(embed, filled)
        with pytest.raises(NotYet):
            waiting.result(timeout=0.3)
        other.execute("ROLLBACK")
        assert torch.equal(waiting.result(timeout=60), clip().encode_text(NAMES))
    assert warnings == []


# ------------------------------------------------------------------------------- many users


def _fill(file: Path, start: int) -> None:
    cache = TextCache(file, "model", 8)
    for i in range(20):
        known = cache.get([f"name {j}" for j in range(start + i)])
        assert all((value == int(text[5:])).all() for text, value in known.items())
        cache.put({f"name {start + i}": np.full(8, start + i, np.float32)})
    assert cache.working


def test_processes_share_a_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_fill, args=(tmp_path / "n", 10 * i)) for i in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=60)
    assert [child.exitcode for child in children] == [0] * 4
    found = TextCache(tmp_path / "n", "model", 8).get([f"name {i}" for i in range(60)])
    assert [int(found[f"name {i}"][0]) for i in range(50)] == list(range(50)) and len(found) == 50


def test_threads_share_an_encoder_and_its_file(tmp_path: Path, warnings: list[str]) -> None:
    names = [f"thing {i}" for i in range(40)]
    wanted = clip().encode_text(names)
    encoder = TextEncoder(clip(), cache_size=5, cache_file=tmp_path / "names.sqlite")

    def ask(start: int) -> bool:
        chosen = [(start * 7 + i) % 40 for i in range(6)]
        return torch.equal(encoder([names[i] for i in chosen]), wanted[chosen])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(64)))
    assert warnings == [] and len(encoder._cache) <= 5


def test_texts_that_cannot_be_encoded_are_not_cached(tmp_path: Path, warnings: list[str]) -> None:
    cache = TextCache(tmp_path / "n", "model", 8)
    cache.put({text: np.ones(8, np.float32) for text in ("a\ud800b", "\0", "鳥", "")})
    assert set(cache.get(["a\ud800b", "\0", "鳥", "", "b"])) == {"\0", "鳥", ""}
    assert warnings == []


def test_tilde_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    embed("~/cache/names.sqlite")
    assert (tmp_path / "cache" / "names.sqlite").is_file()


@pytest.mark.parametrize(
    "setting",
    [dict(cache_size=-1), dict(cache_size=2.5), dict(cache_file=""), dict(cache_file=5)],
    ids=str,
)
def test_invalid_settings(setting: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        TextEncoder(clip(), **setting)
