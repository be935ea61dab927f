"""BLIP (Li et al., arXiv 2201.12086) as a captioner, by transformers."""

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

# Fields of transformers' BlipConfig, where they are not its defaults.
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
    # For checks of the machinery. Weights are drawn wide, so that sentences depend on the image.
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
    """BLIP's caption of every tile: greedy, so the same every time, at most 20 tokens long.

    Tiles are resized to BLIP's 384 x 384 pixels as transformers' own processor does it. Public
    weights, BSD-3-Clause: ``Salesforce/blip-image-captioning-large`` (446 M parameters, 1.8 GB in
    float32, half of it at bf16) and ``Salesforce/blip-image-captioning-base`` (224 M). They are
    frozen and in no checkpoint. A caption takes a pass of the vision tower and up to 20 passes of
    the text decoder per batch of tiles.

    Args:
        prompt_encoder: see :class:`~odise_mm.models.necks.captioners.text.TextCaptioner`.
        arch: ``large``, ``base`` or ``tiny``, or fields of transformers' ``BlipConfig``
            (``text_config``, ``vision_config``) that differ from its defaults. The weights must be
            of it.
        weights: hub id, or a folder with ``config.json``, ``model.safetensors`` or
            ``pytorch_model.bin`` (or their shards, or half precision), and ``tokenizer.json`` or
            ``vocab.txt``. None leaves random weights, the same every time, with English words that
            mean nothing.

    Raises:
        ValueError: an unknown architecture, or no ``prompt_encoder``.
        CheckpointError: weights missing, or of another architecture.
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
            self.model.tie_weights()  # which old versions leave out on the meta device
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
        """Edge of the square image that BLIP sees, in pixels."""
        return self.model.config.vision_config.image_size

    def preprocess(self, tiles: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] to BLIP's input, (N, 3, ``image_size``, ``image_size``).

        In whole gray levels, bicubic and antialiased, as transformers' ``BlipImageProcessor``.
        """
        levels = (tiles.float() * 255).round().to(torch.uint8)
        size = [self.image_size, self.image_size]
        levels = resize(levels, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        return ((levels.float() / 255 - self.mean) / self.std).to(self.dtype)

    def describe(self, tiles: Tensor, captions: Sequence[str | None]) -> list[str]:
        """What BLIP says of each tile; captions are not looked at."""
        # transformers keeps what it prepares for generating on the model itself
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
        """As much arithmetic as the longest caption takes, where tokens have no values."""
        pixels = torch.empty(len(tiles), 3, self.image_size, self.image_size, device="meta")
        tokens = torch.empty(len(tiles), MAX_TOKENS, dtype=torch.long, device="meta")
        # a mask, or else some versions look whether there is padding among the tokens
        mask = torch.ones_like(tokens)
        self.model(pixel_values=pixels.to(self.dtype), input_ids=tokens, attention_mask=mask)

    def compile_parts(self, **options: Any) -> None:
        """Run the vision tower through ``torch.compile``; sentences have many lengths."""
        self.model.vision_model.compile(**options)

    def _load(self, folder: Path) -> None:
        wanted = self.model.state_dict()
        state = read_weights(folder, WEIGHT_STEMS, "weights of BLIP", fits=wanted.__contains__)
        # A counter 0, 1, 2, ... that old files hold and the module makes itself.
        counter = "text_decoder.bert.embeddings.position_ids"
        state.pop(counter, None)
        for copy, source in self.model._tied_weights_keys.items():
            if copy not in state and source in state:  # one tensor, of which files hold one or both
                state[copy] = state[source]
        wrong = differences(state, wanted)
        if wrong:
            raise CheckpointError(
                f"{folder} holds no weights of this BLIP: {wrong}. It takes "
                "BlipForConditionalGeneration's, such as Salesforce/blip-image-captioning-large"
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
                f"no BLIP {arch!r}; there are {', '.join(ARCHS)}, or give the fields of "
                "transformers' BlipConfig"
            )
        arch = ARCHS[arch]
    unknown = set(arch) - {"text_config", "vision_config"}
    if unknown:
        raise ValueError(
            f"arch of BLIPCaptioner has {', '.join(sorted(unknown))}; it takes text_config and "
            "vision_config, the fields of transformers' BlipConfig"
        )
    from transformers import BlipConfig

    known = BlipConfig()
    fields = {part: dict(arch.get(part, {})) for part in ("text_config", "vision_config")}
    for part, given in fields.items():
        unknown = [key for key in given if not hasattr(getattr(known, part), key)]
        if unknown:
            raise ValueError(f"transformers' BLIP has no {part}.{unknown[0]}; arch names it")
    return fields


def _folder(weights: str) -> Path:
    """Where the files are; they are fetched if ``weights`` is a hub id."""
    path = Path(weights).expanduser()
    if path.is_dir():
        return path
    files = f"config.json, {WEIGHT_STEMS[0]}.safetensors and {TOKENIZER_FILES[0]}"
    if weights.count("/") != 1 or weights.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{weights}: no such folder of BLIP's weights. Name a folder with {files}, or a hub "
            "id such as Salesforce/blip-image-captioning-large"
        )
    small = ["config.json", *TOKENIZER_FILES, "tokenizer_config.json"]
    way = (
        f"Check the name and the network, or place {files} from https://huggingface.co/{weights} "
        "in a folder and name that as `weights`"
    )
    with reaching(f"BLIP's weights {weights} are neither a folder nor to be had from the hub", way):
        return download_weights(weights, {"": WEIGHT_STEMS}, small)


def _read_config(folder: Path, fields: dict[str, Any]) -> Any:
    """The folder's own, which must have the fields of ``arch``: heads can't be told from shapes."""
    from transformers import BlipConfig

    path = folder / "config.json"
    content = read_json(path, CheckpointError, "config of a BLIP model")
    try:
        found = BlipConfig(**content)
    except Exception as error:  # transformers has many for values that make no sense
        raise CheckpointError(
            f"{path} is no config of a BLIP model ({first_line(error)})"
        ) from error
    wanted = BlipConfig(**fields)
    for part in ("text_config", "vision_config"):
        theirs, ours = getattr(found, part), getattr(wanted, part)
        # These of a tiny model are all that sizes and heads depend on.
        for key in sorted(set(ARCHS["tiny"][part]) - {"initializer_range"}):
            if getattr(theirs, key) != getattr(ours, key):
                raise CheckpointError(
                    f"{path}: {part}.{key} is {getattr(theirs, key)}, not {getattr(ours, key)} as "
                    "in the config's arch. Set `arch` to the one these weights belong to (old "
                    "copies of Salesforce's files say 8 text heads where the weights have 12: get "
                    "config.json again)"
                )
    return found


def _read_tokenizer(folder: Path) -> "BertTokenizer":
    from transformers import BertTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(
            f"{folder} has no tokenizer: neither of {', '.join(TOKENIZER_FILES)} is in it"
        )
    try:
        return BertTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library's errors have no common class
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be read: {first_line(error)}"
        ) from error


def _random_tokenizer(config: Any) -> "BertTokenizer":
    """A word for every token, from the word list that open_clip brings along."""
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
