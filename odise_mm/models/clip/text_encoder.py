"""Text embeddings of names, remembered between calls and, on request, between runs."""

import os
from collections import OrderedDict
from collections.abc import Sequence

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from odise_mm.config.building import build_part
from odise_mm.errors import ConfigError
from odise_mm.models.clip.frozen_clip import FrozenCLIP
from odise_mm.models.clip.prompts import fill_template
from odise_mm.models.clip.text_cache import TextCache
from odise_mm.registry import MODELS
from odise_mm.utils.bounded_cache import BoundedCache
from odise_mm.utils.locks import Lock
from odise_mm.utils.settings import check_whole
from odise_mm.vocabulary import Vocabulary

_VOCABULARIES = 16


@MODELS.register_module()
class TextEncoder(nn.Module):
    """CLIP's text encoder behind a cache: a name is embedded once, a vocabulary put together once.

    Several threads may call one encoder; one at a time is served.

    Args:
        clip: a :class:`~odise_mm.models.clip.frozen_clip.FrozenCLIP` or its config.
        cache_size: embeddings kept in memory (3 KB each at full size); the oldest go first. They
            are those of prompts: a synonym in two templates counts twice. As many again are kept
            on CLIP's device in the matrices of whole vocabularies.
        cache_file: an SQLite file that keeps embeddings between runs, keyed by CLIP's weights and
            the text, see :class:`~odise_mm.models.clip.text_cache.TextCache`; None keeps none.

    Raises:
        ConfigError: a ``cache_size`` that is no whole number, a ``cache_file`` that is no path.
    """

    def __init__(
        self,
        clip: FrozenCLIP | dict,
        cache_size: int = 20_000,
        cache_file: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        check_whole("cache_size", cache_size, least=0)
        if cache_file is not None and not (
            isinstance(cache_file, str | os.PathLike) and cache_file
        ):
            raise ConfigError(f"cache_file={cache_file!r}: the path of a file, or None")
        self.clip = build_part(clip, MODELS)
        self.cache_size = cache_size
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._matrices: BoundedCache[Tensor] = BoundedCache(_VOCABULARIES, cache_size)
        self._lock = Lock()  # around the cache, and around tokenizers, which have state
        self._text_version = self.clip.text_version
        self.cache_file = cache_file
        self._disk: TextCache | None = None

    @property
    def embed_dim(self) -> int:
        """Width of an embedding."""
        return self.clip.embed_dim

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Embeddings, not L2-normalized: (len(texts), ``embed_dim``) float32 on CLIP's device.

        A text of more tokens than CLIP reads (77 with start and end) is cut there, as CLIP does;
        a warning names it.
        """
        if self.clip.device.type == "meta":  # only shapes exist there: all count as embedded
            return torch.empty(len(texts), self.embed_dim, device="meta")
        with self._lock:
            self._forget_if_changed()
            found = self._find(texts)
        return torch.stack([found[text] for text in texts]).to(self.clip.device)

    def of_vocabulary(self, vocabulary: Vocabulary, template: str) -> Tensor:
        """Embeddings of all synonyms in a template, kept for the next image.

        Args:
            vocabulary: S synonyms.
            template: the prompt around a name.

        Returns:
            (S, ``embed_dim``) float32 on CLIP's device, not L2-normalized, in the order of
            ``vocabulary.flat``. Others get the same tensor: not to be written to.
        """
        with self._lock:
            self._forget_if_changed()
            version = self._text_version
        key = (vocabulary.synonyms, template, self.clip.device, version)
        matrix = self._matrices.get(key)
        if matrix is None:
            # A tensor of inference mode could not be trained with later.
            with torch.inference_mode(False):
                matrix = self(fill_template(template, vocabulary.flat[0]))
            self._matrices.put(key, matrix, len(matrix))
        return matrix

    def _find(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Embeddings of the texts, on the CPU, from wherever they are to be had."""
        found: dict[str, Tensor] = {}
        for text in texts:
            if text in self._cache:
                self._cache.move_to_end(text)
                found[text] = self._cache[text]
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing and self.cache_file is not None and self._disk is None:
            self._disk = TextCache(self.cache_file, self.clip.fingerprint(), self.embed_dim)
        if missing and self._disk is not None:
            known = self._disk.get(missing)
            found.update((text, torch.from_numpy(value)) for text, value in known.items())
            missing = [text for text in missing if text not in found]
        if missing:
            self._warn_if_cut(missing)
            new = dict(zip(missing, self.clip.encode_text(missing).cpu(), strict=True))
            if self._disk is not None:
                self._disk.put({text: value.numpy() for text, value in new.items()})
            found.update(new)
        for text, embedding in found.items():
            self._cache[text] = embedding
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return found

    def forget(self) -> None:
        """Empty the memory; to be called when CLIP's weights were changed in place.

        Weights that a state dict brings, and another number format, are noticed.
        """
        with self._lock:
            self._cache.clear()
            self._matrices.clear()
            self._disk = None

    def forget_vocabularies(self) -> None:
        """Keep the embeddings of names, and no matrix of them."""
        self._matrices.clear()

    def _forget_if_changed(self) -> None:
        if self._text_version != self.clip.text_version:
            self.forget()
            self._text_version = self.clip.text_version

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
