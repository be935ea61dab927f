"""Frozen CLIP, shared by captioner, text encoder and CLIP classifiers."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from odise_mm.checkpoints.safe_loading import differences
from odise_mm.errors import CheckpointError, VocabularyError
from odise_mm.models.clip.causal_text import encode_cut, end_positions
from odise_mm.models.clip.sources import find_clip, read_clip, word_tokenizer_of
from odise_mm.models.clip.word_tokenizer import WORDS_FILE, WordTokenizer
from odise_mm.models.frozen import (
    FrozenModule,
    cast_weights,
    same_random_weights,
)
from odise_mm.registry import MODELS
from odise_mm.utils.locks import Lock
from odise_mm.utils.pages import release_pages, to_float32
from odise_mm.utils.precision import full_precision
from odise_mm.utils.settings import check_flag

# CPU libraries multiply matrices with fewer rows in another order, with different rounding, so the
# embedding of a text would depend on the number of texts in the batch.
_MIN_BATCH = 4
_TOKENIZED = 16_384  # texts whose tokens are in memory at a time


@MODELS.register_module()
class FrozenCLIP(FrozenModule):
    """Frozen open_clip model with preprocessing of image tensors.

    The published ODISE uses OpenAI's ViT-L/14-336 (MIT license).

    Args:
        model: name of an open_clip architecture, the content of such a config (``embed_dim``,
            ``vision_cfg``, ``text_cfg``, ``quick_gelu``), or a folder with an
            ``open_clip_config.json`` and optionally a ``words.txt``. OpenAI's weights need
            QuickGELU. It is used automatically for tags and for OpenAI's TorchScript archive. For
            other files with these weights, use an architecture with QuickGELU
            (``ViT-L-14-336-quickgelu``); a plain GELU silently gives wrong results.
        weights: tag of open_clip (``openai``: downloaded once); a local file: ``.safetensors`` or a
            torch file with open_clip's key names, or OpenAI's TorchScript archive; or a folder with
            ``open_clip_model.safetensors``. None: random weights, the same every time.
        words: words, or a text file of words, for a small text tower with a
            :class:`~odise_mm.models.clip.WordTokenizer`. None: the words in the folder if it has
            any, otherwise CLIP's byte pair encoding.
        mean: mean of the images that the weights were trained on, three numbers for values in
            [0, 1]. None: the values of the tag or folder. For a local file, the values that all of
            open_clip's weights of this architecture share (0.5 for SigLIP), otherwise OpenAI's
            values, with a warning.
        std: standard deviation, like ``mean``.
        tuned_tower: whether the image tower has been fine-tuned for the model that the CLIP is part
            of. The model's checkpoints then contain the tower, and replace that of ``weights``.

    Attributes:
        embed_dim: width of image and text embeddings.

    Raises:
        ValueError: unknown architecture or tag (the message lists the known tags), or a
            ``vocab_size`` that does not match the words.
        VocabularyError: ``words`` is invalid.
        CheckpointError: the file is missing or belongs to another model.
    """

    @classmethod
    def fetch_weights(
        cls,
        model: str | dict = "ViT-L-14-336-quickgelu",
        weights: str | None = None,
        **settings: Any,
    ) -> None:
        """See :meth:`FrozenModule.fetch_weights`."""
        find_clip(model, weights, settings.get("mean"), settings.get("std"))

    def __init__(
        self,
        model: str | dict = "ViT-L-14-336-quickgelu",
        weights: str | None = None,
        words: str | Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        tuned_tower: bool = False,
    ) -> None:
        super().__init__()
        check_flag("tuned_tower", tuned_tower)
        import open_clip

        from odise_mm.models.clip.image_tower import use_frozen_blocks

        config, mean, std, path, folder = find_clip(model, weights, mean, std)
        load = path is not None
        if words is None and folder is not None and (folder / WORDS_FILE).is_file():
            words = str(folder / WORDS_FILE)
        tokenizer = None if words is None else word_tokenizer_of(words, config)
        custom_text = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
        cls = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
        named = isinstance(model, str) and folder is None
        self.embed_dim: int = config["embed_dim"]
        self.name = model if named else json.dumps(config, sort_keys=True)
        with torch.device("meta") if load else same_random_weights():
            self.model = cls(**config)
        if load:
            self._load(path)
        self.tokenizer = tokenizer or (
            open_clip.get_tokenizer(model)
            if named
            else open_clip.SimpleTokenizer(context_length=self.model.context_length)
        )
        self._tokenizing = Lock()
        with torch.device("cpu"):
            self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
            self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self._loads = 0
        self.register_load_state_dict_pre_hook(_count_loads)
        if tuned_tower:
            self.tuned = ("model.visual.",)
        use_frozen_blocks(self.visual)
        self.freeze()

    @property
    def visual(self) -> torch.nn.Module:
        """The image tower."""
        return self.model.visual

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of the image tower; the text tower's is float32."""
        return next(self.visual.parameters()).dtype

    @property
    def image_size(self) -> int:
        """Height and width of the tower's input images in pixels."""
        size = self.visual.image_size  # a number for CLIP's own ResNets
        return size if isinstance(size, int) else size[0]

    @property
    def context_length(self) -> int:
        """Number of tokens of a text, including start and end token."""
        return self.model.context_length

    @property
    def logit_scale(self) -> Tensor:
        """Factor from cosine similarities to logits, at most 100; a scalar."""
        return self.model.logit_scale.float().exp().clamp(max=100)

    @property
    def text_version(self) -> tuple[int, torch.dtype]:
        """Value that changes when text embeddings may change: weights were loaded or cast."""
        return self._loads, self.model.logit_scale.dtype

    def fingerprint(self) -> str:
        """Return a hash of architecture and text weights, the key of stored text embeddings."""
        digest = hashlib.sha256(self.name.encode())
        if isinstance(self.tokenizer, WordTokenizer):
            digest.update(" ".join(self.tokenizer.words).encode())
        for key, value in sorted(self.model.state_dict().items()):
            if not key.startswith("visual."):
                # About 1,000 numbers of each tensor are enough to distinguish weights.
                sample = value.flatten()[:: value.numel() // 1000 + 1]
                digest.update(key.encode() + sample.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def can_read(self, text: str) -> bool:
        """Return whether the text tower can embed a text: all but those with words not in a list.

        See ``words`` of the class.
        """
        if not isinstance(self.tokenizer, WordTokenizer):
            return True
        try:
            self.tokenizer.encode(text)
        except VocabularyError:
            return False
        return True

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize images with CLIP's mean and standard deviation.

        Args:
            images: (..., 3, H, W) in [0, 1], RGB.

        Returns:
            (..., 3, H, W) in the floating point type of the image tower.
        """
        return ((images.float() - self.mean) / self.std).to(self.dtype)

    def cast(self, dtype: torch.dtype) -> None:
        """Cast the image tower; texts are embedded only once, so their tower stays in float32."""
        for name, weight in self.model.named_parameters():
            if not name.startswith("visual."):  # read again from its file for the next texts
                release_pages(weight.data)
        cast_weights(self.visual, dtype)

    def compile_parts(self, **options: Any) -> None:
        """Compile the image tower (only the transformer of a ViT) with ``torch.compile``."""
        getattr(self.visual, "transformer", self.visual).compile(**options)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Compute image embeddings, not L2-normalized.

        Args:
            images: (N, 3, H, W) in [0, 1], RGB. The shorter side is resized to ``image_size``
                (bicubic, without antialiasing, as in the published model), then the center is
                cropped.

        Returns:
            (N, ``embed_dim``) float32
        """
        size = self.image_size
        height, width = map(int, images.shape[-2:])  # integers while tracing, too
        short = min(height, width)
        target = (size * height // short, size * width // short)
        if target != (height, width):
            images = F.interpolate(
                images.float(), target, mode="bicubic", align_corners=False, antialias=False
            )
        top, left = round((target[0] - size) / 2), round((target[1] - size) / 2)
        images = images[..., top : top + size, left : left + size]
        with self.own_precision():
            return self.model.encode_image(self.normalize(images)).float()

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Compute text embeddings, not L2-normalized.

        A causal text tower computes each text only up to its end token. So texts are sorted into
        batches of the same number of tokens, and the time is proportional to the tokens. The
        embedding of a text does not depend on the other texts.

        Args:
            texts: the texts.
            batch_size: largest number of texts per forward pass.

        Returns:
            (len(texts), ``embed_dim``) float32
        """
        embeddings = torch.empty(len(texts), self.embed_dim, device=self.device)
        with full_precision(self.model.logit_scale):
            for start in range(0, len(texts), _TOKENIZED):
                chunk = list(texts[start : start + _TOKENIZED])
                with self._tokenizing:  # calls change the state of Hugging Face tokenizers
                    tokens = self.tokenizer(chunk)
                ends = end_positions(self.model, tokens)
                lengths = None if ends is None else ends + 1
                for length, rows in _batches(lengths, len(chunk), batch_size):
                    padded = rows + rows[:1] * (_MIN_BATCH - len(rows))
                    batch = tokens[padded].to(self.device)
                    if ends is None:
                        encoded = self.model.encode_text(batch)
                    else:
                        encoded = encode_cut(
                            self.model, batch, ends[padded].to(self.device), length
                        )
                    places = torch.tensor(rows, device=self.device) + start
                    embeddings[places] = encoded[: len(rows)].float()
        return embeddings

    def _load(self, path: str) -> None:
        wanted = self.model.state_dict()
        state = read_clip(path, fits=wanted.__contains__)
        wrong = differences(state, wanted)
        if wrong:
            raise CheckpointError(
                f"{path} does not contain weights of CLIP {self.short_name}: {wrong}. Set `model` "
                "to the architecture of these weights."
            )
        floats = {key: to_float32(state[key]) for key in wanted}
        self.model.load_state_dict(floats, assign=True)
        self._rebuild_causal_mask()

    @property
    def short_name(self) -> str:
        """Name for messages: that of the architecture, or the sizes if a config was given."""
        if not self.name.startswith("{"):
            return self.name
        return f"of the config ({self.embed_dim} wide, {self.image_size} pixels)"

    def _rebuild_causal_mask(self) -> None:
        """Fill the text tower's attention mask, the only buffer that is not in files."""
        length = self.context_length
        causal = torch.full((length, length), float("-inf")).triu_(1)
        for owner in (self.model, getattr(self.model, "text", None)):
            if getattr(owner, "attn_mask", None) is not None:
                owner.register_buffer("attn_mask", causal, persistent=False)


def _batches(
    lengths: Tensor | None, count: int, batch_size: int
) -> Iterator[tuple[int, list[int]]]:
    """Sort texts into batches of one length.

    Args:
        lengths: (count,) number of positions of each text, or None if it is the same for all.
        count: number of texts.
        batch_size: largest number of texts in a batch.

    Yields:
        the length (0 without ``lengths``) and the places of the texts in the batch.
    """
    places: dict[int, list[int]] = {}
    for place, length in enumerate([0] * count if lengths is None else lengths.tolist()):
        places.setdefault(length, []).append(place)
    for length in sorted(places):
        for start in range(0, len(places[length]), batch_size):
            yield length, places[length][start : start + batch_size]


def _count_loads(module: FrozenCLIP, state: dict, prefix: str, *_: Any) -> None:
    """Count loaded state dicts that contain weights of CLIP; most checkpoints do not."""
    module._loads += any(key.startswith(prefix) for key in state)
