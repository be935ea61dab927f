"""Text embeddings of names, remembered between calls and, on request, between runs."""

import sqlite3
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from odise_mm.models.clip import FrozenCLIP
from odise_mm.registry import MODELS
from odise_mm.utils.frozen import build_part
from odise_mm.utils.locks import Lock


@MODELS.register_module()
class TextEncoder(nn.Module):
    """CLIP's text encoder behind a cache: a name is embedded once.

    Several threads may call one encoder; one at a time is served.

    Args:
        clip: a :class:`~odise_mm.models.clip.FrozenCLIP` or its config.
        cache_size: embeddings kept in memory (3 KB each at full size); the oldest go first.
        cache_file: an SQLite file that keeps embeddings between runs, keyed by CLIP's weights and
            the text; None keeps none.
    """

    def __init__(
        self,
        clip: FrozenCLIP | dict,
        cache_size: int = 20_000,
        cache_file: str | None = None,
    ) -> None:
        super().__init__()
        self.clip = build_part(clip, MODELS)
        self.cache_size = cache_size
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = Lock()  # around the cache, and around tokenizers, which have state
        self.cache_file = cache_file
        self._disk: _DiskCache | None = None

    @property
    def embed_dim(self) -> int:
        """Width of an embedding."""
        return self.clip.embed_dim

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Embeddings, not L2-normalised: (len(texts), ``embed_dim``) float32 on CLIP's device.

        A text of more tokens than CLIP reads (77 with start and end) is cut there, as CLIP does;
        a warning names it.
        """
        with self._lock:
            found = self._find(texts)
        return torch.stack([found[text] for text in texts]).to(self.clip.device)

    def _find(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Embeddings of the texts, on the CPU, from wherever they are to be had."""
        found: dict[str, Tensor] = {}
        for text in texts:
            if text in self._cache:
                self._cache.move_to_end(text)
                found[text] = self._cache[text]
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing and self.cache_file and self._disk is None:
            self._disk = _DiskCache(self.cache_file, self.clip.fingerprint())
        if missing and self._disk:
            found.update(self._disk.get(missing))
            missing = [text for text in missing if text not in found]
        if missing:
            self._warn_if_cut(missing)
            new = dict(zip(missing, self.clip.encode_text(missing).cpu(), strict=True))
            if self._disk:
                self._disk.put(new)
            found.update(new)
        for text, embedding in found.items():
            self._cache[text] = embedding
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return found

    def forget(self) -> None:
        """Empty the memory; to be called when CLIP's weights have changed."""
        with self._lock:
            self._cache.clear()
            self._disk = None

    def _warn_if_cut(self, texts: Sequence[str]) -> None:
        tokenizer = self.clip.tokenizer
        room = self.clip.context_length - 2
        for text in texts:
            # a token covers at least one character, so short texts need no counting
            if len(text) > room and hasattr(tokenizer, "encode"):
                length = len(tokenizer.encode(text))
                if length > room:
                    print_log(
                        f"'{text[:60]}...' has {length} tokens; CLIP reads the first {room} only",
                        logger="current",
                        level=30,
                    )


class _DiskCache:
    def __init__(self, file: str, model: str) -> None:
        self.file, self.model = Path(file), model
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS embeddings"
                " (model TEXT, text TEXT, value BLOB, PRIMARY KEY (model, text))"
            )

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.file, timeout=30)

    def get(self, texts: Sequence[str]) -> dict[str, Tensor]:
        query = "SELECT value FROM embeddings WHERE model = ? AND text = ?"
        found = {}
        with self._open() as database:
            for text in texts:
                row = database.execute(query, (self.model, text)).fetchone()
                if row:
                    found[text] = torch.from_numpy(np.frombuffer(row[0], np.float32).copy())
        return found

    def put(self, embeddings: dict[str, Tensor]) -> None:
        rows = [(self.model, text, value.numpy().tobytes()) for text, value in embeddings.items()]
        with self._open() as database:
            database.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?)", rows)
