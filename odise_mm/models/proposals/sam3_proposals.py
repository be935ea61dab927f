"""Masks and scores of SAM 3: class names are the prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.structures import DetDataSample
from torch import Tensor

from odise_mm.models.classifiers.base import ClassPrediction
from odise_mm.models.frozen import FrozenModule
from odise_mm.models.proposals.base import ImageMaskSource, Proposals, resize_masks_to
from odise_mm.models.proposals.sam_models import build_sam, image_processor, sam_folder
from odise_mm.registry import MODELS
from odise_mm.utils.bounded_cache import BoundedCache
from odise_mm.utils.settings import check_weight, check_whole
from odise_mm.vocabulary import Vocabulary

_OTHER_CLASS = -200.0
"""Logit of the classes that a mask does not have: its probability is 0 in float32."""


@MODELS.register_module()
class Sam3Proposals(ImageMaskSource, FrozenModule):
    """Masks of SAM 3 (arXiv 2511.16719) with concept prompts, with SAM 3's own classes.

    For every name of the vocabulary, SAM 3 (transformers' ``Sam3Model``) finds the masks of all
    objects that the name describes. The image is encoded once for all names; the embeddings of
    names are cached. The score of a mask is the probability that the name occurs in the image
    (presence) times that of the mask. Masks of different names overlap; panoptic inference
    assigns each pixel to one of them.

    Classes may have several names. Several names of a class find the same object, so of two masks
    of different names of one class that cover each other, only the better one is kept: the score
    of an object is the maximum over the names.

    The class prediction has all probability in the mask's class, and 1 - score as the probability
    of void. With an ensemble that drops masks for which void is more likely than any class, scores
    of at most 0.5 never count, so use ``GeometricEnsemble`` with ``drop_void=False`` for a lower
    ``threshold``.

    Public weights: ``facebook/sam3`` (SAM License; access must be requested on the hub). They are
    frozen and not saved in checkpoints.

    Args:
        weights: hub id, or a folder with ``config.json`` and ``model.safetensors``; other formats
            are not read. None: random weights, see ``arch``.
        arch: for random weights: ``model_type="sam3"`` and the fields of transformers'
            ``Sam3Config`` that differ from its defaults.
        threshold: the score of a mask must be larger.
        same_object: IoU from which masks of different names of a class are the same object.
        prompts_per_batch: number of names that are decoded at a time; limits memory.

    Raises:
        ConfigError: a setting is not allowed, or the weights are of another model.
        CheckpointError: the weights are missing or cannot be downloaded.
    """

    names_masks = True

    @classmethod
    def fetch_weights(cls, weights: str | None = None, **_: Any) -> None:
        """See :meth:`FrozenModule.fetch_weights`."""
        if weights is not None:
            sam_folder(cls.__name__, weights)

    def __init__(
        self,
        weights: str | None = None,
        arch: Mapping[str, Any] | None = None,
        threshold: float = 0.5,
        same_object: float = 0.7,
        prompts_per_batch: int = 8,
    ) -> None:
        super().__init__()
        check_weight("threshold", threshold)
        check_weight("same_object", same_object)
        check_whole("prompts_per_batch", prompts_per_batch)
        self.threshold = threshold
        self.same_object = same_object
        self.prompts_per_batch = prompts_per_batch
        self.model = build_sam(type(self).__name__, weights, arch, ("Sam3",))
        from open_clip import SimpleTokenizer

        edge = self.model.config.vision_config.image_size
        self.processor = image_processor("Sam3", {"height": edge, "width": edge})
        # SAM 3 has CLIP's tokens, in a shorter context.
        context = self.model.config.text_config.max_position_embeddings
        self.tokenizer = SimpleTokenizer(context_length=context)
        self._texts: BoundedCache[tuple[Tensor, Tensor]] = BoundedCache(4096, 4096)
        self.freeze()

    def cast(self, dtype: torch.dtype) -> None:
        """See :meth:`FrozenModule.cast`; all tensors are cast, as transformers expects."""
        self.model.to(dtype)

    def compile_parts(self, **options: Any) -> None:
        """Compile the image encoder. The decoder is left out: its batches vary in size."""
        self.model.vision_encoder.compile(**options)

    def propose(
        self, image: Tensor, sample: DetDataSample | None, vocabulary: Vocabulary
    ) -> Proposals:
        """See :meth:`ImageMaskSource.propose`.

        SAM 3's masks are logits at its own resolution, and are resized to the image.
        """
        names, class_of_name = vocabulary.flat
        masks, scores, name_of_mask = self._masks_of_names(image, names)
        classes = torch.tensor(class_of_name, device=image.device)[name_of_mask]
        kept = _without_repeated(masks, scores, name_of_mask, classes, self.same_object)
        masks, scores, classes = masks[kept], scores[kept], classes[kept]
        logits = scores.new_full((len(kept), len(vocabulary)), _OTHER_CLASS)
        logits.scatter_(1, classes[:, None], 0.0)
        masks = resize_masks_to(masks, tuple(image.shape[-2:]))
        return Proposals(masks, scores, ClassPrediction(logits, p_void=1 - scores))

    def _masks_of_names(self, image: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mask logits (Q, h, w), scores (Q,) and indices of names (Q,)."""
        # The images of a dataset have 8 bits, and so has the input of transformers' processor.
        levels = (image * 255).round().to(torch.uint8)
        inputs = self.processor(levels, input_data_format="channels_first", return_tensors="pt")
        pixels = inputs["pixel_values"].to(image.device, self.dtype)
        masks, scores, name_of_mask = [], [], []
        with self.own_precision():
            vision = self.model.get_vision_features(pixels)
            for first in range(0, len(names), self.prompts_per_batch):
                batch = tuple(names[first : first + self.prompts_per_batch])
                outputs = self._decode(vision, batch)
                presence = outputs.presence_logits.float().sigmoid()
                score = outputs.pred_logits.float().sigmoid() * presence
                prompt, query = (score > self.threshold).nonzero(as_tuple=True)
                masks.append(outputs.pred_masks[prompt, query].float())
                scores.append(score[prompt, query])
                name_of_mask.append(prompt + first)
        return torch.cat(masks), torch.cat(scores), torch.cat(name_of_mask)

    def _decode(self, vision: Any, names: tuple[str, ...]) -> Any:
        texts, mask = self._embed(names)
        repeated = type(vision)(
            fpn_hidden_states=_repeat(vision.fpn_hidden_states, len(names)),
            fpn_position_encoding=_repeat(vision.fpn_position_encoding, len(names)),
        )
        return self.model(vision_embeds=repeated, text_embeds=texts, attention_mask=mask)

    def _embed(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Return the text features of N names, (N, L, C), and which tokens are not padding."""
        key = (names, self.device, self.dtype)
        found = self._texts.get(key)
        if found is None:
            tokens = self.tokenizer(list(names)).to(self.device)
            # The end token has the highest number.
            length = tokens.argmax(-1, keepdim=True) + 1
            mask = (torch.arange(tokens.shape[1], device=self.device) < length).long()
            texts = self.model.get_text_features(tokens, mask).pooler_output
            # Old versions of transformers take this tensor, new ones an object that contains it.
            given = texts.detach()
            given.pooler_output = texts
            found = given, mask
            self._texts.put(key, found, len(names))
        return found


def _repeat(maps: Sequence[Tensor], count: int) -> tuple[Tensor, ...]:
    return tuple(level.expand(count, -1, -1, -1) for level in maps)


def _without_repeated(
    masks: Tensor, scores: Tensor, names: Tensor, classes: Tensor, same_object: float
) -> Tensor:
    """Return the indices of the masks without objects that another name of the class found better.

    Args:
        masks: logits (Q, h, w).
        scores: (Q,).
        names: index of the name that found the mask, (Q,).
        classes: index of its class, (Q,).
        same_object: IoU from which two masks are the same object.

    Returns:
        Indices in ascending order.
    """
    kept: list[int] = []
    for label in classes.unique().tolist():
        members = (classes == label).nonzero().flatten()
        order = members[scores[members].argsort(descending=True, stable=True)]
        if len(names[order].unique()) == 1:
            kept += order.tolist()
            continue
        inside = (masks[order] > 0).flatten(1).float()
        shared = inside @ inside.T
        area = shared.diagonal()
        iou = shared / (area[:, None] + area - shared).clamp(min=1)
        same = (iou >= same_object) & (names[order][:, None] != names[order])
        same = same.cpu()
        best: list[int] = []
        for index in range(len(order)):
            if not same[index, best].any():
                best.append(index)
        kept += order[best].tolist()
    return torch.tensor(sorted(kept), dtype=torch.long, device=masks.device)
