"""Text embeddings of names, cached in memory and optionally on disk."""

import os
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from odise_mm.config.building import build_part
from odise_mm.errors import ConfigError
from odise_mm.models.clip.frozen_clip import FrozenCLIP
from odise_mm.models.clip.prompts import Template, fill_each, fill_template, templates_of
from odise_mm.models.clip.text_cache import TextCache
from odise_mm.registry import MODELS
from odise_mm.utils.bounded_cache import BoundedCache
from odise_mm.utils.locks import Lock
from odise_mm.utils.settings import check_whole
from odise_mm.vocabulary import Vocabulary

_VOCABULARIES = 16
_NAMES_AT_A_TIME = 1000  # in several templates: bounds the prompts in memory


@MODELS.register_module()
class TextEncoder(nn.Module):
    """CLIP's text encoder with caches for texts and for whole vocabularies.

    Calls are thread-safe; they run one at a time.

    Args:
        clip: a :class:`~odise_mm.models.clip.frozen_clip.FrozenCLIP` or its config.
        cache_size: number of text embeddings that are kept in memory (3 KB each at full size). The
            least recently used ones are removed first. A synonym in two prompt templates counts
            twice. The matrices of whole vocabularies take up to the same number of rows on CLIP's
            device in addition.
        cache_file: SQLite file that keeps embeddings between runs, with CLIP's weights and the text
            as key, see :class:`~odise_mm.models.clip.text_cache.TextCache`. None: no file.

    Raises:
        ConfigError: ``cache_size`` is not an integer, or ``cache_file`` is not a path.
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
            raise ConfigError(f"cache_file={cache_file!r} must be the path of a file, or None")
        self.clip = build_part(clip, MODELS)
        self.cache_size = cache_size
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._matrices: BoundedCache[Tensor] = BoundedCache(_VOCABULARIES, cache_size)
        self._lock = Lock()  # for the cache and for tokenizers, which have a state
        self._text_version = self.clip.text_version
        self.cache_file = cache_file
        self._disk: TextCache | None = None

    @property
    def embed_dim(self) -> int:
        """Width of an embedding."""
        return self.clip.embed_dim

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Compute text embeddings, not L2-normalized.

        Texts that exceed CLIP's context length (77 tokens including start and end) are truncated,
        with a warning.

        Args:
            texts: the texts.

        Returns:
            (len(texts), ``embed_dim``) float32 on CLIP's device.
        """
        if self.clip.device.type == "meta":  # there is nothing to compute or cache
            return torch.empty(len(texts), self.embed_dim, device="meta")
        with self._lock:
            self._forget_if_changed()
            found = self._find(texts)
        return torch.stack([found[text] for text in texts]).to(self.clip.device)

    def of_names(self, names: Sequence[str], template: Template) -> Tensor:
        """Return the embeddings of names in a template, or in the mean of several templates.

        Args:
            names: without a template.
            template: see :data:`~odise_mm.models.clip.prompts.Template`. The embeddings of several
                templates are L2-normalized, then averaged.

        Returns:
            (len(names), ``embed_dim``) float32 on CLIP's device, not L2-normalized.
        """
        templates = templates_of(template)
        if len(templates) == 1:
            return self(fill_template(templates[0], names))
        means = []
        for start in range(0, len(names), _NAMES_AT_A_TIME):
            some = names[start : start + _NAMES_AT_A_TIME]
            prompts = [prompt for name in some for prompt in fill_each(templates, name)]
            embeddings = F.normalize(self(prompts), dim=-1)
            means.append(embeddings.unflatten(0, (len(some), -1)).mean(1))
        return torch.cat(means)

    def of_vocabulary(self, vocabulary: Vocabulary, template: Template) -> Tensor:
        """Return the embeddings of all synonyms of a vocabulary, cached for the next image.

        Args:
            vocabulary: vocabulary with S synonyms.
            template: see :meth:`of_names`.

        Returns:
            (S, ``embed_dim``) float32 on CLIP's device, not L2-normalized, in the order of
            ``vocabulary.flat``. The tensor is shared with other callers and must not be changed.
        """
        with self._lock:
            self._forget_if_changed()
            version = self._text_version
        key = (vocabulary.synonyms, templates_of(template), self.clip.device, version)
        matrix = self._matrices.get(key)
        if matrix is None:
            # Autograd could not use a tensor that was created in inference mode.
            with torch.inference_mode(False):
                matrix = self.of_names(vocabulary.flat[0], template)
            self._matrices.put(key, matrix, len(matrix))
        return matrix

    def _find(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return embeddings on the CPU: from memory, from the file, or from CLIP."""
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
        """Clear the caches in memory. Call this after changing CLIP's weights in place.

        It is not necessary after ``load_state_dict`` or a change of the floating point type.
        """
        with self._lock:
            self._cache.clear()
            self._matrices.clear()
            self._disk = None

    def forget_vocabularies(self) -> None:
        """Clear the matrices of vocabularies, but keep the embeddings of texts."""
        self._matrices.clear()

    def _forget_if_changed(self) -> None:
        if self._text_version != self.clip.text_version:
            self.forget()
            self._text_version = self.clip.text_version

    def _warn_if_cut(self, texts: Sequence[str]) -> None:
        limit = self.clip.context_length - 2
        for text, length in self.too_long(texts).items():
            print_log(
                f"'{text[:60]}...' has {length} tokens; CLIP only uses the first {limit}",
                logger="current",
                level=30,
            )

    def too_long(self, texts: Sequence[str]) -> dict[str, int]:
        """Return the texts that exceed CLIP's context length, with their numbers of tokens."""
        tokenizer = self.clip.tokenizer
        limit = self.clip.context_length - 2
        # A token has at least one character, so short texts need no tokenization.
        long = [text for text in texts if len(text) > limit and hasattr(tokenizer, "encode")]
        lengths = {text: len(tokenizer.encode(text)) for text in long}
        return {text: length for text, length in lengths.items() if length > limit}
