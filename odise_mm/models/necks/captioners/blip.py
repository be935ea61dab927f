"""BLIP (Li et al., arXiv 2201.12086) as a captioner, based on transformers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from odise_mm.checkpoints.hub import reaching
from odise_mm.checkpoints.safe_loading import differences
from odise_mm.checkpoints.weight_folders import download_weights, read_weights
from odise_mm.errors import CheckpointError
from odise_mm.models.frozen import FrozenModule, is_meta_context, same_random_weights
from odise_mm.models.necks.captioners.text import PromptEncoder, TextCaptioner
from odise_mm.registry import MODELS
from odise_mm.utils.display import first_line
from odise_mm.utils.files import read_json
from odise_mm.utils.locks import Lock

if TYPE_CHECKING:
    from transformers import BertTokenizer

# Fields of transformers' BlipConfig that differ from its defaults.
ARCHS: dict[str, dict[str, dict[str, Any]]] = {
    "base": dict(text_config=dict(num_attention_heads=12), vision_config=dict()),
    "large": dict(
        text_config=dict(num_attention_heads=12),
        vision_config=dict(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
        ),
    ),
    # For tests. The weights have a large variance, so that sentences depend on the image.
    "tiny": dict(
        text_config=dict(
            vocab_size=1024,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            bos_token_id=1023,
            initializer_range=0.5,
        ),
        vision_config=dict(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            initializer_range=0.5,
        ),
    ),
}
MAX_TOKENS = 20
WEIGHT_STEMS = ("model", "pytorch_model")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


@MODELS.register_module()
class BLIPCaptioner(TextCaptioner, FrozenModule):
    """Describes every tile with BLIP.

    Decoding is greedy and therefore deterministic. Captions have at most 20 tokens. Tiles are
    resized to BLIP's 384 x 384 pixels in the same way as by transformers' processor. A batch of
    tiles takes one pass of the vision tower and up to 20 passes of the text decoder.

    Public weights (BSD-3-Clause) are ``Salesforce/blip-image-captioning-large`` (446 M parameters,
    1.8 GB in float32, half of that in bf16) and ``Salesforce/blip-image-captioning-base`` (224 M).
    They are frozen and not saved in checkpoints.

    Args:
        prompt_encoder: see :class:`~odise_mm.models.necks.captioners.text.TextCaptioner`.
        arch: ``large``, ``base`` or ``tiny``, or the fields of transformers' ``BlipConfig``
            (``text_config``, ``vision_config``) that differ from its defaults. It must match the
            weights.
        weights: hub id, or a folder with ``config.json``, ``model.safetensors`` or
            ``pytorch_model.bin`` (also sharded or in half precision), and ``tokenizer.json`` or
            ``vocab.txt``. None initializes the model with random weights that are always the same;
            its captions are random English words.

    Raises:
        ValueError: unknown architecture, or ``prompt_encoder`` is None.
        CheckpointError: weights are missing or have another architecture.
    """

    @classmethod
    def fetch_weights(cls, weights: str | None = None, **_: Any) -> None:
        """See :meth:`FrozenModule.fetch_weights`."""
        if weights is not None:
            _folder(weights)

    def __init__(
        self,
        prompt_encoder: PromptEncoder | None = None,
        arch: str | Mapping[str, Any] = "large",
        weights: str | None = None,
    ) -> None:
        super().__init__(prompt_encoder)
        from transformers import BlipConfig, BlipForConditionalGeneration

        fields = _fields(arch)
        self._lock = Lock()
        self.tokenizer: BertTokenizer | None = None
        if weights is None or is_meta_context():
            with same_random_weights():
                self.model = BlipForConditionalGeneration(BlipConfig(**fields))
            self.model.tie_weights()  # old versions do not tie them on the meta device
            if not is_meta_context():
                self.tokenizer = _random_tokenizer(self.model.config.text_config)
        else:
            folder = _folder(weights)
            config = _read_config(folder, fields)
            with torch.device("meta"):
                self.model = BlipForConditionalGeneration(config)
            self._load(folder)
            self.tokenizer = _read_tokenizer(folder)
        with torch.device("cpu"):
            from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

            mean, std = torch.tensor(OPENAI_CLIP_MEAN), torch.tensor(OPENAI_CLIP_STD)
            self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
            self.register_buffer("std", std.view(3, 1, 1), persistent=False)
        self.freeze()

    @property
    def image_size(self) -> int:
        """Edge of BLIP's square input in pixels."""
        return self.model.config.vision_config.image_size

    def preprocess(self, tiles: Tensor) -> Tensor:
        """Convert tiles to BLIP's input.

        As in transformers' ``BlipImageProcessor``, pixels are rounded to 8 bits, and resizing is
        bicubic and antialiased.

        Args:
            tiles: (N, 3, H, W) in [0, 1].

        Returns:
            (N, 3, ``image_size``, ``image_size``), normalized.
        """
        levels = (tiles.float() * 255).round().to(torch.uint8)
        size = [self.image_size, self.image_size]
        levels = resize(levels, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        return ((levels.float() / 255 - self.mean) / self.std).to(self.dtype)

    def describe(self, tiles: Tensor, captions: Sequence[str | None]) -> list[str]:
        """Return BLIP's caption of every tile; ``captions`` is ignored."""
        # Locked because transformers stores the state of generation in the model.
        with self._lock, self.own_precision():
            if tiles.is_meta:
                self._run_on_meta(tiles)
                return [""] * len(tiles)
            tokens = self.model.generate(
                self.preprocess(tiles), do_sample=False, num_beams=1, max_new_tokens=MAX_TOKENS
            )
        texts = self.tokenizer.batch_decode(tokens[:, 1:].cpu(), skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _run_on_meta(self, tiles: Tensor) -> None:
        """Run as many operations as the longest caption takes, for counting them."""
        pixels = torch.empty(len(tiles), 3, self.image_size, self.image_size, device="meta")
        tokens = torch.empty(len(tiles), MAX_TOKENS, dtype=torch.long, device="meta")
        # Without a mask, some versions of transformers read the tokens to look for padding.
        mask = torch.ones_like(tokens)
        self.model(pixel_values=pixels.to(self.dtype), input_ids=tokens, attention_mask=mask)

    def compile_parts(self, **options: Any) -> None:
        """Compile the vision tower. The text decoder is left out: sentences vary in length."""
        self.model.vision_model.compile(**options)

    def _load(self, folder: Path) -> None:
        wanted = self.model.state_dict()
        state = read_weights(folder, WEIGHT_STEMS, "weights of BLIP", fits=wanted.__contains__)
        # Old files contain the positions 0, 1, 2, ..., which the module creates itself.
        counter = "text_decoder.bert.embeddings.position_ids"
        state.pop(counter, None)
        for copy, source in self.model._tied_weights_keys.items():
            if copy not in state and source in state:  # files may omit one of two tied tensors
                state[copy] = state[source]
        wrong = differences(state, wanted)
        if wrong:
            raise CheckpointError(
                f"the weights in {folder} do not fit this BLIP: {wrong}. Use weights of "
                "BlipForConditionalGeneration, such as Salesforce/blip-image-captioning-large"
            )
        floats = {key: state[key].to(torch.float32) for key in wanted}
        self.model.load_state_dict(floats, assign=True)
        self.model.tie_weights()
        embeddings = self.model.text_decoder.bert.embeddings
        length = self.model.config.text_config.max_position_embeddings
        embeddings.register_buffer("position_ids", torch.arange(length)[None], persistent=False)


def _fields(arch: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(
                f"unknown arch {arch!r} of BLIPCaptioner; use one of {', '.join(ARCHS)}, or the "
                "fields of transformers' BlipConfig"
            )
        arch = ARCHS[arch]
    unknown = set(arch) - {"text_config", "vision_config"}
    if unknown:
        raise ValueError(
            f"unknown key {', '.join(sorted(unknown))} in arch of BLIPCaptioner; it accepts "
            "text_config and vision_config, the fields of transformers' BlipConfig"
        )
    from transformers import BlipConfig

    known = BlipConfig()
    fields = {part: dict(arch.get(part, {})) for part in ("text_config", "vision_config")}
    for part, given in fields.items():
        unknown = [key for key in given if not hasattr(getattr(known, part), key)]
        if unknown:
            raise ValueError(
                f"unknown key {part}.{unknown[0]} in arch of BLIPCaptioner: transformers' "
                "BlipConfig does not have it"
            )
    return fields


def _folder(weights: str) -> Path:
    """Return the folder of the weights; they are downloaded if ``weights`` is a hub id."""
    path = Path(weights).expanduser()
    if path.is_dir():
        return path
    files = f"config.json, {WEIGHT_STEMS[0]}.safetensors and {TOKENIZER_FILES[0]}"
    if weights.count("/") != 1 or weights.startswith((".", "/", "~")):
        raise CheckpointError(
            f"BLIP's weights: folder {weights} does not exist; pass a folder with {files}, or a "
            "hub id such as Salesforce/blip-image-captioning-large"
        )
    small = ["config.json", *TOKENIZER_FILES, "tokenizer_config.json"]
    way = (
        f"Check the name and the network, or put {files} from https://huggingface.co/{weights} "
        "into a folder and pass it as `weights`"
    )
    with reaching(f"BLIP's weights {weights} are neither a folder nor available on the hub", way):
        return download_weights(weights, {"": WEIGHT_STEMS}, small)


def _read_config(folder: Path, fields: dict[str, Any]) -> Any:
    """Read the folder's config and compare it with the fields of ``arch``.

    The number of heads cannot be inferred from the shapes of the weights.
    """
    from transformers import BlipConfig

    path = folder / "config.json"
    content = read_json(path, CheckpointError, "config of a BLIP model")
    try:
        found = BlipConfig(**content)
    except Exception as error:  # transformers raises various types for invalid values
        raise CheckpointError(
            f"{path} is not a config of a BLIP model ({first_line(error)})"
        ) from error
    wanted = BlipConfig(**fields)
    for part in ("text_config", "vision_config"):
        theirs, ours = getattr(found, part), getattr(wanted, part)
        # The fields of the tiny model are all fields that define sizes and heads.
        for key in sorted(set(ARCHS["tiny"][part]) - {"initializer_range"}):
            if getattr(theirs, key) != getattr(ours, key):
                raise CheckpointError(
                    f"{path}: {part}.{key} is {getattr(theirs, key)}, but the config's arch has "
                    f"{getattr(ours, key)}. Set `arch` to the architecture of these weights (old "
                    "copies of Salesforce's config.json have 8 text heads instead of 12: download "
                    "it again)"
                )
    return found


def _read_tokenizer(folder: Path) -> "BertTokenizer":
    from transformers import BertTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(
            f"{folder} has no tokenizer: it contains none of {', '.join(TOKENIZER_FILES)}"
        )
    try:
        return BertTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the errors of tokenizers have no common base class
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be read: {first_line(error)}"
        ) from error


def _random_tokenizer(config: Any) -> "BertTokenizer":
    """Build a tokenizer with a word of open_clip's word list for every token."""
    from open_clip import SimpleTokenizer
    from transformers import BertTokenizer

    special = {
        config.pad_token_id: "[PAD]",
        config.sep_token_id: "[SEP]",
        config.bos_token_id: "[DEC]",
    }
    ends = [piece[:-4] for piece in SimpleTokenizer().encoder if piece.endswith("</w>")]
    words = (word for word in ends if word.isascii() and word.isalpha() and len(word) > 2)
    vocab = {special.get(i) or next(words, f"word{i}"): i for i in range(config.vocab_size)}
    return BertTokenizer(vocab=vocab, additional_special_tokens=["[DEC]"])
