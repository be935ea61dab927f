"""Building of transformers' SAM models from a config, a folder or the Hugging Face Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from odise_mm.checkpoints.hub import hub_files, reaching
from odise_mm.errors import CheckpointError, ConfigError
from odise_mm.models.frozen import is_meta_context, same_random_weights
from odise_mm.utils.display import first_line, printable
from odise_mm.utils.files import read_json

FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
"""Files of a hub repository that are downloaded. Other formats are not read."""

ATTENTION = "sdpa"
"""Attention of all models. A config.json may name another one, even code on the hub."""

CLASSES = {"sam": "Sam", "sam2": "Sam2", "sam2_video": "Sam2", "sam3": "Sam3", "sam3_video": "Sam3"}
"""``model_type`` in a config.json, and the prefix of transformers' classes for images."""


def _vit(width: int, layers: int, heads: int, all_positions: list[int]) -> dict[str, Any]:
    vision = dict(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        global_attn_indexes=all_positions,
    )
    return dict(model_type="sam", vision_config=vision)


def _hiera(width: int, heads: int, blocks: list[int], **others: Any) -> dict[str, Any]:
    widths = [width * 2**stage for stage in range(4)]
    backbone = dict(
        hidden_size=width,
        num_attention_heads=heads,
        blocks_per_stage=blocks,
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[heads * 2**stage for stage in range(4)],
        **others,
    )
    vision = dict(backbone_config=backbone, backbone_channel_list=widths[::-1])
    return dict(model_type="sam2", vision_config=vision)


# Fields that differ from transformers' defaults, so that models can be built on the meta device
# without a download. With real weights, their config.json is read instead.
PUBLISHED: dict[str, dict[str, Any]] = {
    "facebook/sam-vit-base": _vit(768, 12, 12, [2, 5, 8, 11]),
    "facebook/sam-vit-large": _vit(1024, 24, 16, [5, 11, 17, 23]),
    "facebook/sam-vit-huge": _vit(1280, 32, 16, [7, 15, 23, 31]),
    "facebook/sam2.1-hiera-tiny": _hiera(96, 1, [1, 2, 7, 2], global_attention_blocks=[5, 7, 9]),
    "facebook/sam2.1-hiera-small": _hiera(
        96, 1, [1, 2, 11, 2], global_attention_blocks=[7, 10, 13]
    ),
    "facebook/sam2.1-hiera-base-plus": _hiera(
        112,
        2,
        [2, 3, 16, 3],
        global_attention_blocks=[12, 16, 20],
        window_positional_embedding_background_size=[14, 14],
    ),
    "facebook/sam2.1-hiera-large": _hiera(
        144,
        2,
        [2, 6, 36, 4],
        global_attention_blocks=[23, 33, 43],
        window_size_per_stage=[8, 4, 16, 8],
    ),
    "facebook/sam3": dict(model_type="sam3"),
}


def build_sam(
    part: str, weights: str | None, arch: Mapping[str, Any] | None, kinds: tuple[str, ...]
) -> nn.Module:
    """Build a SAM model of transformers in eval mode.

    Args:
        part: name of the part that needs it, for messages.
        weights: hub id, or a folder with ``config.json`` and safetensors. None: random weights
            that are always the same.
        arch: for random weights: ``model_type`` and the fields of transformers' config that differ
            from its defaults.
        kinds: accepted prefixes of transformers' classes: ``Sam``, ``Sam2``, ``Sam3``.

    Raises:
        ConfigError: not exactly one of ``weights`` and ``arch`` is given, the model is of another
            kind, or a field is unknown.
        CheckpointError: the weights are missing, do not fit, or cannot be downloaded.
    """
    if (weights is None) == (arch is None):
        raise ConfigError(
            f"{part} needs either weights (a hub id, such as facebook/sam-vit-base, or a folder) "
            "or arch (fields of transformers' config, for random weights)"
        )
    if weights is not None and not is_meta_context():
        return _from_folder(part, sam_folder(part, weights), kinds)
    given = arch if weights is None else _arch_without_download(part, weights)
    fields = {key: value for key, value in given.items() if key != "model_type"}
    prefix = _prefix(part, given.get("model_type"), kinds, "arch")
    import transformers

    config_class = getattr(transformers, f"{prefix}Config")
    if arch is not None:
        _check_fields(part, fields, config_class(), "arch")
    with same_random_weights():
        model = getattr(transformers, f"{prefix}Model")(config_class(**_copied(fields)))
    return model.eval()


def image_processor(prefix: str, size: dict[str, int], **options: Any) -> Any:
    """Build transformers' image processor that works on tensors, on any device.

    Args:
        prefix: prefix of its class: ``Sam``, ``Sam2``, ``Sam3``.
        size: size of the model's input.
        options: other arguments of the class.
    """
    import transformers

    # In old versions of transformers, this name is a slower processor, and "Fast" marks this one.
    suffix = "" if hasattr(transformers, "SamImageProcessorPil") else "Fast"
    return getattr(transformers, f"{prefix}ImageProcessor{suffix}")(size=size, **options)


def sam_folder(part: str, weights: str) -> Path:
    """Return the folder of the weights; they are downloaded if ``weights`` is a hub id.

    Raises:
        CheckpointError: the folder does not exist, or the download failed.
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        return path
    files = "config.json and model.safetensors"
    if weights.count("/") != 1 or weights.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{part}: folder {printable(weights)} does not exist; pass a folder with {files}, or "
            "a hub id such as facebook/sam-vit-base"
        )
    way = (
        "Check the name, the network and, for gated models such as SAM 3, `hf auth login`; "
        f"or put {files} from https://huggingface.co/{weights} into a folder and pass it as "
        "`weights`"
    )
    with reaching(f"{part}: {weights} is neither a folder nor available on the hub", way):
        return hub_files(weights, FILES)


def _from_folder(part: str, folder: Path, kinds: tuple[str, ...]) -> nn.Module:
    import transformers

    path = folder / "config.json"
    content = read_json(path, CheckpointError, "config of a SAM model")
    kind = content.get("model_type") if isinstance(content, dict) else None
    prefix = _prefix(part, kind, kinds, printable(path))
    model_class = getattr(transformers, f"{prefix}Model")
    try:
        model, info = model_class.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            attn_implementation=ATTENTION,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # transformers has no common base class for these
        raise CheckpointError(
            f"{part}: the model in {printable(folder)} cannot be read: {first_line(error)}"
        ) from error
    # Otherwise transformers initializes missing weights randomly and only logs it.
    wrong = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys")}
    for name, keys in wrong.items():
        if keys:
            raise CheckpointError(
                f"{part}: the weights in {printable(folder)} do not fit its config.json: "
                f"{len(keys)} {name.replace('_', ' ')}, such as {printable(keys[0])}"
            )
    return model.eval()


def _arch_without_download(part: str, weights: str) -> Mapping[str, Any]:
    path = Path(weights).expanduser() / "config.json"
    if path.is_file():
        return read_json(path, CheckpointError, "config of a SAM model")
    if weights in PUBLISHED:
        return PUBLISHED[weights]
    raise ConfigError(
        f"{part}: the architecture of {weights} is unknown without its config.json; download the "
        f"model into a folder, or use one of {', '.join(PUBLISHED)}"
    )


def _prefix(part: str, kind: Any, kinds: tuple[str, ...], where: str) -> str:
    accepted = [name for name, prefix in CLASSES.items() if prefix in kinds]
    if kind not in accepted:
        raise ConfigError(
            f"{part}: model_type {kind!r} in {where} is not one of {', '.join(accepted)}"
        )
    return CLASSES[kind]


def _check_fields(part: str, fields: Mapping[str, Any], known: Any, where: str) -> None:
    """Raise ConfigError for a field that transformers would keep without using it.

    How attention is computed is not a field: it may name code on the hub.
    """
    for key, value in fields.items():
        if key.startswith("_") or key == "attn_implementation" or not hasattr(known, key):
            raise ConfigError(
                f"{part}: unknown key {where}.{key}: transformers' {type(known).__name__} does "
                "not have it"
            )
        if isinstance(value, Mapping):
            inner = {name: field for name, field in value.items() if name != "model_type"}
            _check_fields(part, inner, getattr(known, key), f"{where}.{key}")


def _copied(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain dictionaries, because transformers changes those it gets."""
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in fields.items()}
