"""The one frozen CLIP that captioner, text encoder and second prediction share (open_clip)."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from odise_mm.checkpoints.safe_loading import differences
from odise_mm.errors import CheckpointError
from odise_mm.models.clip.sources import find_clip, read_clip, word_tokenizer_of
from odise_mm.models.clip.word_tokenizer import WORDS_FILE, WordTokenizer
from odise_mm.models.frozen import (
    FrozenModule,
    cast_weights,
    same_random_weights,
)
from odise_mm.registry import MODELS
from odise_mm.utils.locks import Lock
from odise_mm.utils.precision import full_precision

# Products of fewer rows take another way through CPU libraries, with other rounding: a name's
# embedding would depend on how many are embedded with it.
_LEAST_TEXTS = 4


@MODELS.register_module()
class FrozenCLIP(FrozenModule):
    """An open_clip model with preprocessing on tensors; parameters are never trained.

    Weights: OpenAI's ViT-L/14-336 (MIT license) for the published ODISE.

    Args:
        model: name of an open_clip architecture, or the content of such a config (``embed_dim``,
            ``vision_cfg``, ``text_cfg``, ``quick_gelu``), or a folder with open_clip's
            ``open_clip_config.json`` and perhaps ``words.txt``. OpenAI's weights need QuickGELU. A
            tag and OpenAI's archive say so and it is used; for any other file name an architecture
            that has it (``ViT-L-14-336-quickgelu``): a plain GELU gives wrong numbers silently.
        weights: open_clip's tag (``openai``: downloaded once), or a local file: open_clip names in
            ``.safetensors`` or a torch file, or OpenAI's own TorchScript archive; or a folder with
            ``open_clip_model.safetensors``. None leaves random weights, the same every time.
        mean, std: of the images that the weights were trained on, three numbers for values in
            [0, 1]. None: those of the tag or folder; for a local file those on which all of
            open_clip's weights of the architecture agree (0.5 for SigLIP), else OpenAI's, with a
            warning.
        words: for a small text tower that reads whole words: the words, or a text file of them,
            see :class:`~odise_mm.models.clip.WordTokenizer`. None: those of the folder
            if it has any, else CLIP's byte pair encoding.

    Attributes:
        embed_dim: width of image and text embeddings.

    Raises:
        ValueError: unknown architecture or tag (the known tags are listed); a ``vocab_size`` that
            is not that of the words.
        VocabularyError: ``words`` cannot be used.
        CheckpointError: the file is missing or of another model.
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
    ) -> None:
        super().__init__()
        import open_clip

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
        """Edge of the square image that the tower wants, in pixels."""
        size = self.visual.image_size  # a number for CLIP's own ResNets
        return size if isinstance(size, int) else size[0]

    @property
    def context_length(self) -> int:
        """Tokens of a text, start and end included."""
        return self.model.context_length

    @property
    def logit_scale(self) -> Tensor:
        """Factor between cosine similarity and logits, at most 100; a scalar."""
        return self.model.logit_scale.float().exp().clamp(max=100)

    @property
    def text_version(self) -> tuple[int, torch.dtype]:
        """Another one where embeddings of texts may differ: weights were loaded, or cast."""
        return self._loads, self.model.logit_scale.dtype

    def fingerprint(self) -> str:
        """Name of architecture and weights; the key of stored text embeddings."""
        digest = hashlib.sha256(self.name.encode())
        if isinstance(self.tokenizer, WordTokenizer):
            digest.update(" ".join(self.tokenizer.words).encode())
        for key, value in sorted(self.model.state_dict().items()):
            if not key.startswith("visual."):
                # A thousand numbers of each tensor tell any two trainings apart.
                sample = value.flatten()[:: value.numel() // 1000 + 1]
                digest.update(key.encode() + sample.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def normalize(self, images: Tensor) -> Tensor:
        """(..., 3, H, W) in [0, 1] to CLIP's mean and standard deviation, in the tower's type."""
        return ((images.float() - self.mean) / self.std).to(self.dtype)

    def cast(self, dtype: torch.dtype) -> None:
        """Store the image tower in another float type; names are embedded in float32, once."""
        cast_weights(self.visual, dtype)

    def compile_parts(self, **options: Any) -> None:
        """Run the image tower, or a ViT's transformer alone, through ``torch.compile``."""
        getattr(self.visual, "transformer", self.visual).compile(**options)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Image embeddings, not L2-normalized.

        Args:
            images: (N, 3, H, W) in [0, 1], RGB. The short edge is resized bicubically (without
                antialias, as in the published model) to ``image_size``, then the center is cropped.

        Returns:
            (N, ``embed_dim``) float32
        """
        size = self.image_size
        height, width = map(int, images.shape[-2:])  # plain numbers while traced, too
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
        """Text embeddings, not L2-normalized: (len(texts), ``embed_dim``) float32."""
        batches = []
        with full_precision(self.model.logit_scale):
            for start in range(0, len(texts), batch_size):
                some = list(texts[start : start + batch_size])
                with self._tokenizing:  # Hugging Face's set their padding anew at every call
                    tokens = self.tokenizer(some + some[:1] * (_LEAST_TEXTS - len(some)))
                encoded = self.model.encode_text(tokens.to(self.device))[: len(some)]
                batches.append(encoded.float())
        return torch.cat(batches)

    def _load(self, path: str) -> None:
        wanted = self.model.state_dict()
        state = read_clip(path, fits=wanted.__contains__)
        wrong = differences(state, wanted)
        if wrong:
            raise CheckpointError(
                f"{path} holds no weights for CLIP {self.short_name}: {wrong}. Name the "
                "architecture that the file was made for."
            )
        floats = {key: state[key].to(torch.float32) for key in wanted}
        self.model.load_state_dict(floats, assign=True)
        self._rebuild_causal_mask()

    @property
    def short_name(self) -> str:
        """What messages call it: the architecture's name, or the size of a spelled-out one."""
        if not self.name.startswith("{"):
            return self.name
        return f"of the config ({self.embed_dim} wide, {self.image_size} pixels)"

    def _rebuild_causal_mask(self) -> None:
        """The text tower's mask is the one buffer that no file holds."""
        length = self.context_length
        causal = torch.full((length, length), float("-inf")).triu_(1)
        for owner in (self.model, getattr(self.model, "text", None)):
            if getattr(owner, "attn_mask", None) is not None:
                owner.register_buffer("attn_mask", causal, persistent=False)


def _count_loads(module: FrozenCLIP, state: dict, prefix: str, *_: Any) -> None:
    """Checkpoints of whole models mostly hold none of CLIP's weights."""
    module._loads += any(key.startswith(prefix) for key in state)
