"""Loading of trained weights from our own checkpoints and from the files of published methods.

Our checkpoints contain only the trained parameters (for ODISE 28 M numbers, 112 MB in float32).
The frozen parts are loaded from their own files, which the config names. The published files of
FC-CLIP, OVRCOAT and MAFT+ also contain the CLIP.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.logging import print_log
from torch import Tensor, nn

from odise_mm.checkpoints.safe_loading import differences, load_meta, load_state_dict
from odise_mm.checkpoints.training_names import PUBLISHED, PublishedNames, compare_names
from odise_mm.errors import CheckpointError
from odise_mm.utils.display import printable

Rules = tuple[tuple[str, str], ...]

# Published name (regular expression) -> our name. Of the rules of a method, each key must match
# exactly one.
_MASK2FORMER: Rules = (
    # pixel decoder
    (
        r"sem_seg_head\.pixel_decoder\.input_proj\.(\d+)\.0\.",
        r"head.pixel_decoder.input_convs.\1.conv.",
    ),
    (
        r"sem_seg_head\.pixel_decoder\.input_proj\.(\d+)\.1\.",
        r"head.pixel_decoder.input_convs.\1.gn.",
    ),
    (
        r"sem_seg_head\.pixel_decoder\.transformer\.level_embed$",
        "head.pixel_decoder.level_encoding.weight",
    ),
    (
        r"sem_seg_head\.pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.self_attn\.",
        r"head.pixel_decoder.encoder.layers.\1.self_attn.",
    ),
    (
        r"sem_seg_head\.pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.norm1\.",
        r"head.pixel_decoder.encoder.layers.\1.norms.0.",
    ),
    (
        r"sem_seg_head\.pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.norm2\.",
        r"head.pixel_decoder.encoder.layers.\1.norms.1.",
    ),
    (
        r"sem_seg_head\.pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.linear1\.",
        r"head.pixel_decoder.encoder.layers.\1.ffn.layers.0.0.",
    ),
    (
        r"sem_seg_head\.pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.linear2\.",
        r"head.pixel_decoder.encoder.layers.\1.ffn.layers.1.",
    ),
    (
        r"sem_seg_head\.pixel_decoder\.adapter_1\.norm\.",
        "head.pixel_decoder.lateral_convs.0.gn.",
    ),
    (r"sem_seg_head\.pixel_decoder\.adapter_1\.", "head.pixel_decoder.lateral_convs.0.conv."),
    (r"sem_seg_head\.pixel_decoder\.layer_1\.norm\.", "head.pixel_decoder.output_convs.0.gn."),
    (r"sem_seg_head\.pixel_decoder\.layer_1\.", "head.pixel_decoder.output_convs.0.conv."),
    (r"sem_seg_head\.pixel_decoder\.mask_features\.", "head.pixel_decoder.mask_feature."),
    # transformer decoder
    (
        r"sem_seg_head\.predictor\.transformer_cross_attention_layers\.(\d+)\.multihead_attn\.",
        r"head.transformer_decoder.layers.\1.cross_attn.attn.",
    ),
    (
        r"sem_seg_head\.predictor\.transformer_cross_attention_layers\.(\d+)\.norm\.",
        r"head.transformer_decoder.layers.\1.norms.0.",
    ),
    (
        r"sem_seg_head\.predictor\.transformer_self_attention_layers\.(\d+)\.self_attn\.",
        r"head.transformer_decoder.layers.\1.self_attn.attn.",
    ),
    (
        r"sem_seg_head\.predictor\.transformer_self_attention_layers\.(\d+)\.norm\.",
        r"head.transformer_decoder.layers.\1.norms.1.",
    ),
    (
        r"sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.linear1\.",
        r"head.transformer_decoder.layers.\1.ffn.layers.0.0.",
    ),
    (
        r"sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.linear2\.",
        r"head.transformer_decoder.layers.\1.ffn.layers.1.",
    ),
    (
        r"sem_seg_head\.predictor\.transformer_ffn_layers\.(\d+)\.norm\.",
        r"head.transformer_decoder.layers.\1.norms.2.",
    ),
    (r"sem_seg_head\.predictor\.decoder_norm\.", "head.transformer_decoder.post_norm."),
    (r"sem_seg_head\.predictor\.(query_feat|query_embed|level_embed)\.", r"head.\1."),
    (r"sem_seg_head\.predictor\.mask_embed\.layers\.(\d+)\.", r"head.mask_embed.<\1>."),
)
_ODISE: Rules = (
    # implicit captioner
    (r"backbone\.feature_extractor\.alpha_cond$", "captioner.context_gate"),
    (r"backbone\.feature_extractor\.alpha_cond_time_embed$", "captioner.time_gate"),
    (r"backbone\.feature_extractor\.clip_project\.", "captioner.context."),
    (r"backbone\.feature_extractor\.time_embed_project\.", "captioner.time."),
    # feature projection
    (r"backbone\.feature_projections\.(\d+)\.0\.(\w+)\.weight$", r"neck.blocks.\1.\2.0.weight"),
    (r"backbone\.feature_projections\.(\d+)\.0\.(\w+)\.norm\.", r"neck.blocks.\1.\2.1."),
    # mask embeddings and embeddings of the class names
    (
        r"sem_seg_head\.predictor\.post_mask_embed\.logit_scale$",
        "classifiers.0.logit_scale",
    ),
    (
        r"sem_seg_head\.predictor\.post_mask_embed\.pool_proj\.",
        "head.mask_embedding.pool_proj.",
    ),
    (
        r"sem_seg_head\.predictor\.post_mask_embed\.mask_embed\.0\.",
        "head.mask_embedding.norm.",
    ),
    (
        r"sem_seg_head\.predictor\.post_mask_embed\.mask_embed\.1\.layers\.(\d+)\.",
        r"head.mask_embedding.mlp.<\1>.",
    ),
    (r"category_head\.null_embed$", "classifiers.0.null_embedding"),
    (r"(category|word)_head\.text_proj\.", "classifiers.0.text_proj."),
    (r"sem_seg_head\.predictor\.class_embed\.(?=weight|bias)", "head.cls_embed."),
)
_FC_CLIP: Rules = (
    # the whole CLIP is in the file
    (r"backbone\.clip_model\.", "clip.model."),
    (r"sem_seg_head\.predictor\.logit_scale$", "classifiers.0.logit_scale"),
    (r"sem_seg_head\.predictor\._mask_pooling_proj\.", "head.mask_embedding.pool_proj."),
    (r"sem_seg_head\.predictor\.class_embed\.layers\.(\d+)\.", r"head.mask_embedding.mlp.<\1>."),
    (r"void_embedding\.weight$", "classifiers.0.null_embedding"),
)
_CONTENT_DEPENDENT_TRANSFER: Rules = (
    (r"cdt\.cross_atten\.multihead_attn\.", "classifiers.1.text_adapter.attention."),
    (r"cdt\.cross_atten\.norm\.", "classifiers.1.text_adapter.norm."),
    (r"cdt\.cross_atten\.MLP\.", "classifiers.1.text_adapter.mlp."),
)
_MASKCLIPPP: Rules = (
    # no masks and no text tower: these come from other files
    (r"visual_encoder\.proxy\.", "clip.model.visual."),
    (r"psm\.img_proj\.", "classifiers.0.text_adapter.image_proj."),
    (r"psm\.img2text\.", "classifiers.0.text_adapter.attention."),
    (r"psm\.ln_1\.", "classifiers.0.text_adapter.norm."),
)


class Method(NamedTuple):
    """A method whose published checkpoints can be loaded.

    Attributes:
        markers: prefixes of keys that tell its files from those of the methods after it.
        names: training vocabulary of its checkpoints.
        rules: from published names to ours.
    """

    markers: tuple[str, ...]
    names: PublishedNames
    rules: Rules


METHODS = (
    Method(("visual_encoder.", "psm."), PUBLISHED["MaskCLIP++"], _MASKCLIPPP),
    Method(("frozen_backbone.",), PUBLISHED["OVRCOAT"], _MASK2FORMER + _FC_CLIP),
    Method(
        ("cdt.", "backbone_t."),
        PUBLISHED["MAFT+"],
        _MASK2FORMER + _FC_CLIP + _CONTENT_DEPENDENT_TRANSFER,
    ),
    Method(
        ("backbone.clip_model.", "void_embedding."), PUBLISHED["FC-CLIP"], _MASK2FORMER + _FC_CLIP
    ),
    Method(
        ("sem_seg_head.", "backbone.feature_extractor."),
        PUBLISHED["ODISE"],
        _MASK2FORMER + _ODISE,
    ),
)
"""All methods; the first one whose markers a file has is its method."""

_LOGIT_SCALES = frozenset({"backbone.clip_model.logit_scale", "clip.model.logit_scale"})
PUBLISHED_NAMES: Rules = (
    *_MASK2FORMER,
    *_ODISE,
    *_FC_CLIP,
    *_CONTENT_DEPENDENT_TRANSFER,
    *_MASKCLIPPP,
)
"""All rules."""

_CONFIGS = {"FC-CLIP": "configs/fcclip", "OVRCOAT": "configs/ovrcoat"}

# Published keys that are deliberately not loaded, with the reason.
PUBLISHED_UNUSED: dict[str, str] = {
    "criterion.empty_weight": "class weights of the training loss; the config sets them",
}
# The same for all keys with a prefix.
_UNUSED_PARTS = {
    "frozen_backbone.": "OVRCOAT's second CLIP, which only its training losses use",
    "backbone_t.": "MAFT+'s teacher, which only its training losses use",
}


def published_method(state: Mapping[str, Tensor]) -> Method | None:
    """Return the method whose published parameter names a state dict uses; None if it is ours."""
    for method in METHODS:
        if any(key.startswith(method.markers) for key in state):
            return method
    return None


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict uses the parameter names of published code."""
    return published_method(state) is not None


def _reason_unused(key: str) -> str | None:
    """Return why a published key is not loaded; None if it is."""
    parts = (reason for prefix, reason in _UNUSED_PARTS.items() if key.startswith(prefix))
    return PUBLISHED_UNUSED.get(key) or next(parts, None)


def known_names(model: nn.Module | None = None) -> Callable[[str], bool]:
    """Return a function that recognizes parameter names of a model and of the published code."""
    ours = frozenset() if model is None else frozenset(model.state_dict())
    return lambda key: key in ours or _reason_unused(key) is not None or _rename(key) is not None


def from_published(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename the parameters of a published checkpoint.

    Args:
        state: the entry ``model`` of a published file of ODISE, FC-CLIP, OVRCOAT, MAFT+ or
            MaskCLIP++.

    Returns:
        The trained parameters under our names, and the unused keys with the reason for each.

    Raises:
        CheckpointError: a key is neither in ``PUBLISHED_NAMES`` nor in ``PUBLISHED_UNUSED``.
    """
    ours: dict[str, Tensor] = {}
    unused: dict[str, str] = {}
    for key, value in state.items():
        reason = _reason_unused(key)
        if reason is not None:
            unused[key] = reason
            continue
        name = _rename(key)
        if name is None:
            raise CheckpointError(f"not a key of a published checkpoint: {printable(key)}")
        ours[name] = value
    return ours, unused


def _rename(key: str) -> str | None:
    """Return our name of a published parameter; None if the name is unknown."""
    for pattern, name in PUBLISHED_NAMES:
        match = re.match(pattern, key)
        if match:
            renamed = match.expand(name) + key[match.end() :]
            # Our MLPs are Sequentials with activations in between, so layer i has index 2 * i.
            return re.sub(r"<(\d+)>", lambda m: str(2 * int(m[1])), renamed)
    return None


def expected_tensors(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a checkpoint of a model must contain, given what it does contain.

    These are the trained parameters, those of frozen parts that were fine-tuned before, and all of
    a frozen part if the checkpoint contains others of it. FC-CLIP's contain the whole CLIP. A
    parameter with several names in the model, as in a trained trunk of CLIP, must have one of them.

    Args:
        model: an :class:`~odise_mm.models.OpenVocabSegmentor`; may be on the meta device.
        state: contents of the checkpoint, under our names.
    """
    parts: dict[str, Tensor] = model.state_dict()
    frozen: list[str] = []
    for name, module in model.named_modules():
        prefix = f"{name}."
        if getattr(module, "frozen", False) is not True or prefix.startswith(tuple(frozen)):
            continue
        frozen.append(prefix)
        tuned = tuple(prefix + part for part in getattr(module, "tuned", ()))
        own = {prefix + key: value for key, value in module.named_parameters()}
        whole = any(key.startswith(prefix) and not key.startswith(tuned) for key in state)
        parts.update((key, own[key]) for key in own if whole or key.startswith(tuned))
    for names in _names_by_parameter(model):
        if any(name in state for name in names):
            for name in names:
                if name not in state:
                    parts.pop(name, None)
    return parts


def clip_weights(model: nn.Module, parts: Sequence[str] = ("",)) -> dict[str, Tensor]:
    """Return the weights of a model's CLIP that its state dict lacks, under their names in it.

    A checkpoint that contains them can be loaded without the CLIP's own file. A trunk that is
    trained is in the state dict anyway, as a part of the backbone.

    Args:
        model: an :class:`~odise_mm.models.OpenVocabSegmentor` with a CLIP.
        parts: prefixes of the names in the CLIP; by default, all.
    """
    state = model.state_dict()
    named = model.named_parameters(remove_duplicate=False)
    trained = {id(parameter) for name, parameter in named if name in state}
    return {
        f"clip.{name}": value.detach()
        for name, value in model.clip.named_parameters()
        if name.startswith(tuple(parts)) and id(value) not in trained
    }


def _names_by_parameter(model: nn.Module) -> list[list[str]]:
    """Return all names of each parameter; a trained trunk is a part of backbone and CLIP."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())


def _with_trained_names(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Add the trained parameters that a checkpoint has under another name only."""
    trained = model.state_dict()
    filled = dict(state)
    for names in _names_by_parameter(model):
        known = next((name for name in names if name in state), None)
        if known is not None:
            filled |= {n: state[known] for n in names if n in trained and n not in state}
    return filled


def use_contained_clip(model: dict[str, Any], path: str | Path) -> bool:
    """Skip the config's weights of CLIP if a checkpoint contains the CLIP, as FC-CLIP's do.

    Otherwise they would be downloaded or read, only to be overwritten.

    Args:
        model: config of a segmentor; its ``clip.weights`` is set to None.
        path: checkpoint that :func:`load_weights` will read. If it cannot be read, nothing is
            changed: :func:`load_weights` reports the error.

    Returns:
        Whether the config was changed.
    """
    clip = model.get("clip")
    if not isinstance(clip, dict) or clip.get("weights") is None:
        return False
    with suppress(CheckpointError):
        state = load_state_dict(path, fits=known_names())
        # every CLIP has a logit scale; files with a fine-tuned image tower alone have none
        if not _LOGIT_SCALES.isdisjoint(state):
            clip["weights"] = None
            print_log(f"{printable(path)} contains the CLIP: using its weights", logger="current")
            return True
    return False


def load_weights(model: nn.Module, path: str | Path) -> dict[str, str]:
    """Load trained parameters into a model, strictly: keys and shapes must match exactly.

    Logs which published method a file belongs to, and a warning if the config is that of another
    method with the same keys (FC-CLIP, OVRCOAT), or if the weights were trained with other class
    names than those in the config's ``ensemble.train_vocabulary``.

    Args:
        model: an :class:`~odise_mm.models.OpenVocabSegmentor`.
        path: our checkpoint (``.safetensors``, ``.pth``), or a published file of ODISE, FC-CLIP,
            OVRCOAT, MAFT+ or MaskCLIP++.

    Returns:
        Keys that were deliberately not loaded, with the reason for each.

    Raises:
        CheckpointError: the weights do not match the model; the message names the first
            differences.
    """
    state = load_state_dict(path, fits=known_names(model))
    unused: dict[str, str] = {}
    published = published_method(state)
    meta = load_meta(path) if published is None else {}
    if published is not None:
        state, unused = from_published(state)
    wanted = expected_tensors(model, state)
    wrong = differences(state, wanted)
    if wrong:
        advice = "It contains the weights of another model."
        if published is not None and published.names.method != "ODISE":
            advice = f"It is a checkpoint of {published.names.method}: use a config of this method."
        elif any(key in wanted for key in state):
            advice = (
                "Use odise_coco_caption.py for caption-supervised checkpoints and "
                "odise_coco_label.py for label-supervised ones."
            )
        raise CheckpointError(f"{path} does not match this config: {wrong}. {advice}")
    model.load_state_dict(_with_trained_names(state, model))
    names = None if published is None else published.names
    _report_method(model, path, names.method if names else None, meta)
    compare_names(model, path, meta, names)
    return unused


def _report_method(
    model: nn.Module, path: str | Path, by_keys: str | None, meta: Mapping[str, Any]
) -> None:
    """Log the method of a published file, and a warning if the model is of another method.

    The keys that FC-CLIP and OVRCOAT share do not tell them apart. Other signs do: OVRCOAT's
    training code also saves its second CLIP, our converter writes the method into the file, and the
    name of the file is a hint.

    Args:
        model: model that the file was loaded into.
        path: path of the file.
        by_keys: name of the method according to the keys; None if the names are ours.
        meta: metadata of the file.
    """
    method, reason = by_keys, "by its keys"
    if method is None and "converted_from" in meta:
        method, reason = str(meta.get("method")), "by its metadata"
    if method not in PUBLISHED:
        return
    if method == "OVRCOAT" and by_keys is not None:
        reason = "it contains frozen_backbone.*"
    elif method == "FC-CLIP":
        hint = re.search(r"(ovrcoat)|fc-?_?clip", Path(path).name, re.IGNORECASE)
        if hint is None:
            print_log(
                f"{printable(path)} is a published checkpoint of FC-CLIP, or of OVRCOAT without "
                "its second CLIP: they have the same keys, so check that the config is that of "
                "the right method",
                logger="current",
            )
            return
        method, reason = "OVRCOAT" if hint[1] else "FC-CLIP", "by its keys and its file name"
    print_log(f"{printable(path)} is a published {method} checkpoint ({reason})", logger="current")
    ensemble = getattr(model, "ensemble", None)
    ours = "OVRCOAT" if hasattr(ensemble, "coat_lambda") else "FC-CLIP"
    if {method, ours} == {"FC-CLIP", "OVRCOAT"}:
        print_log(
            f"{printable(path)} seems to be a checkpoint of {method} ({reason}), but the config is "
            f"that of {ours} (model.ensemble.type={type(ensemble).__name__}). The weights fit "
            "both, but the results are those of neither. Use a config of "
            f"{_CONFIGS[method]} for this file",
            logger="current",
            level=logging.WARNING,
        )
