"""Mask2Former's head with an embedding for every mask (ODISE, section 3.4)."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import Mask2FormerHead
from mmdet.models.utils import get_uncertain_point_coords_with_randomness
from mmdet.utils import reduce_mean
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from odise_mm.errors import ConfigError, TrainingError
from odise_mm.models.image_sizes import resize_image
from odise_mm.models.losses.class_loss import OpenVocabCrossEntropyLoss
from odise_mm.models.losses.mask_points import Matches, sample_each, sample_matched, sample_shared
from odise_mm.registry import MODELS
from odise_mm.utils.mmcv_ops import choose_ops_backend
from odise_mm.utils.precision import full_precision
from odise_mm.utils.settings import check_flag, check_whole

# of mmdet's pixel decoder: harmless, and nothing that a user could change
warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)

# Arguments of mmdet's head that are not accepted as options of OpenVocabMask2FormerHead.
_OWN_ARGUMENTS = (
    "self",
    "kwargs",
    "in_channels",
    "feat_channels",
    "out_channels",
    "num_things_classes",
    "num_stuff_classes",
)


class Frame(NamedTuple):
    """Size of the image that masks were predicted on.

    Attributes:
        padded: height and width of the padded image in pixels, which the masks cover.
        image: height and width of the image without padding, which is at the top left.
    """

    padded: tuple[int, int]
    image: tuple[int, int]


class MaskPrediction(NamedTuple):
    """Output of one decoder layer for B images and Q queries.

    Attributes:
        masks: mask logits, (B, Q, H / stride, W / stride).
        embeddings: mask embeddings, which classifiers compare with class names, (B, Q, C); None for
            masks without any.
        objectness: logits of "object" and "no object", (B, Q, 2), in models trained with captions
            or with masks alone; None in models trained with labels.
        features: last level of the pyramid that the head read, (B, C', H / 32, W / 32), for
            classifiers that need it (``reads_features``); otherwise None.
        frames: for each image, the size that it had for the masks, if they were predicted at
            another size than that of the batch; otherwise None.
        pyramid: all levels of the pyramid, for classifiers that need them; otherwise None.
        named: what the classifiers before this one compare with the names, each (B, Q, C), by their
            names in results, for classifiers with ``reads_embeddings``; otherwise None.
    """

    masks: Tensor
    embeddings: Tensor | None = None
    objectness: Tensor | None = None
    features: Tensor | None = None
    frames: Sequence[Frame] | None = None
    pyramid: Sequence[Tensor] | None = None
    named: Mapping[str, Tensor] | None = None

    @property
    def stride(self) -> int:
        """Pixels of the padded image per position of the masks: 4, or as ``frames`` say."""
        if self.frames is None:
            return 4
        return round(self.frames[0].padded[0] / self.masks.shape[-2])

    def frames_of(self, images: Sequence[Tensor]) -> Sequence[Frame]:
        """Return the frame of every image (3, h, w) of the batch."""
        if self.frames is not None:
            return self.frames
        height, width = (4 * side for side in self.masks.shape[-2:])
        return [Frame((height, width), tuple(image.shape[-2:])) for image in images]

    def images_at_own_size(self, images: Sequence[Tensor]) -> Sequence[Tensor]:
        """Resize images (3, h, w) to the sizes that the masks were predicted at (bilinear)."""
        if self.frames is None:
            return images
        pairs = zip(images, self.frames, strict=True)
        return [resize_image(image, frame.image) for image, frame in pairs]


class MaskEmbedding(nn.Module):
    """Mask embeddings from mask features, masks and queries (ODISE, section 3.4 and supplement).

    The mask features are averaged over the binary mask (probability above 0.5). The average is
    projected and added to the query. An MLP with three layers computes the embedding of the sum.

    Args:
        channels: channels of queries and mask features.
        embed_dim: width of the embeddings.
        norm: whether to normalize the sum before the MLP: ODISE does, FC-CLIP does not.
    """

    def __init__(self, channels: int, embed_dim: int, norm: bool) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.pool_proj = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels))
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()
        self.mlp = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, embed_dim),
        )

    def forward(self, queries: Tensor, masks: Tensor, mask_features: Tensor) -> Tensor:
        """Embed the masks.

        Args:
            queries: queries after the final layer norm, (B, Q, C).
            masks: mask logits, (B, Q, H, W).
            mask_features: (B, C, H, W).

        Returns:
            (B, Q, ``embed_dim``), not normalized.
        """
        binary = (masks.detach() > 0).flatten(2).float()
        # Sums over whole images exceed the range of float16.
        with full_precision(masks):
            pooled = torch.einsum("bqp,bcp->bqc", binary, mask_features.flatten(2).float())
            # Empty masks have the average 0.
            pooled = pooled / binary.sum(-1, keepdim=True).clamp_min(1)
        return self.mlp(self.norm(self.pool_proj(pooled) + queries))


@MODELS.register_module()
class OpenVocabMask2FormerHead(Mask2FormerHead):
    """Mask2Former head that predicts masks and mask embeddings for any number of classes.

    Pixel decoder, transformer decoder, matching and mask losses are mmdet's. The mask embedding
    replaces mmdet's classifier. Only models trained without labels keep a classifier, which
    predicts "object" or "no object".

    Args:
        in_channels: channels of the pyramid's levels of strides 4, 8, 16, 32.
        objectness: whether to predict "object" or "no object" (supervision by captions, or by masks
            alone).
        feat_channels: channels of the decoders (published: 256).
        out_channels: channels of the mask features (published: 256).
        embed_dim: width of the mask embeddings; None: ``out_channels``.
        embed_norm: whether to normalize a mask embedding before its MLP: ODISE does, FC-CLIP does
            not.
        embed_masks: whether to compute mask embeddings. False in models whose masks are named by
            CLIP alone.
        **options: other arguments of :class:`mmdet.models.Mask2FormerHead`: ``num_queries``,
            ``pixel_decoder``, ``transformer_decoder``, ``positional_encoding``; for training
            ``loss_cls`` (an :class:`~odise_mm.models.losses.class_loss.OpenVocabCrossEntropyLoss`),
            ``loss_mask``, ``loss_dice`` and ``train_cfg`` (points, assigner, sampler). With
            ``train_cfg.ignore_unlabeled``, a fraction, queries without a match are left out of the
            class loss if at least this fraction of their mask lies on pixels without annotation;
            by default, they learn to be void.

    Raises:
        TypeError: unknown argument.
        ConfigError: ``loss_cls`` is made for a fixed number of classes, or a size is not a whole
            number.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        objectness: bool = False,
        feat_channels: int = 256,
        out_channels: int = 256,
        embed_dim: int | None = None,
        embed_norm: bool = True,
        embed_masks: bool = True,
        **options: Any,
    ) -> None:
        # mmdet would silently ignore misspelled arguments.
        known = [
            key
            for key in inspect.signature(Mask2FormerHead.__init__).parameters
            if key not in _OWN_ARGUMENTS
        ]
        unknown = [key for key in options if key not in known]
        if unknown:
            raise TypeError(
                f"OpenVocabMask2FormerHead has no argument {', '.join(unknown)}; it has: "
                f"in_channels, objectness, feat_channels, out_channels, {', '.join(known)}"
            )
        check_flag("objectness", objectness)
        check_flag("embed_norm", embed_norm)
        check_flag("embed_masks", embed_masks)
        sizes = {"feat_channels": feat_channels, "out_channels": out_channels, **options}
        for name in ("feat_channels", "out_channels", "num_queries", "num_transformer_feat_level"):
            if name in sizes:
                check_whole(name, sizes[name])
        embed_dim = out_channels if embed_dim is None else embed_dim
        check_whole("embed_dim", embed_dim)
        # mmdet reads nested options as attributes.
        options = {k: ConfigDict(v) if isinstance(v, dict) else v for k, v in options.items()}
        options["loss_cls"] = _class_loss(options.get("loss_cls"))
        super().__init__(
            in_channels=list(in_channels),
            feat_channels=feat_channels,
            out_channels=out_channels,
            num_things_classes=1,
            num_stuff_classes=0,
            **options,
        )
        choose_ops_backend()
        self._matches: list[list[Matches]] = []
        if not objectness:
            self.cls_embed = None
        self.mask_embedding = None
        if embed_masks:
            self.mask_embedding = MaskEmbedding(out_channels, embed_dim, embed_norm)

    def forward(self, pyramid: Sequence[Tensor], all_layers: bool = False) -> list[MaskPrediction]:
        """Predict masks and their embeddings.

        Args:
            pyramid: feature maps of strides 4, 8, 16, 32, each (B, C_i, H_i, W_i).
            all_layers: whether to return the predictions before the first and after every decoder
                layer, as training needs. Otherwise, intermediate masks are computed only at the
                size that masked attention needs, and only the last masks are embedded.

        Returns:
            The last layer's prediction in a list; with ``all_layers``, all predictions in order.
        """
        # Always in float32, as in Mask2Former: 16 bits are too few for sampling points, and the
        # compiled operator does not support bfloat16.
        with full_precision(pyramid[0]):
            mask_features, memories = self.pixel_decoder([level.float() for level in pyramid])
        keys, key_positions = self._decoder_memories(memories)
        sizes = [memory.shape[-2:] for memory in memories]
        # Resizing and the product of embeddings and features are linear, so their order can be
        # swapped.
        resized = None
        if not all_layers:
            resized = [_resize(mask_features, size) for size in sizes]

        batch = len(mask_features)
        queries = self.query_feat.weight.expand(batch, -1, -1)
        positions = self.query_embed.weight.expand(batch, -1, -1)
        layers = self.transformer_decoder.layers
        predictions = []
        for index, layer in enumerate(layers):
            level = index % len(sizes)
            if all_layers:
                predictions.append(self._predict(queries, mask_features))
                masks = _resize(predictions[-1].masks, sizes[level])
            else:
                masks = self._masks(self._norm(queries), resized[level])
            queries = layer(
                query=queries,
                key=keys[level],
                value=keys[level],
                query_pos=positions,
                key_pos=key_positions[level],
                cross_attn_mask=self._attention_mask(masks),
            )
        predictions.append(self._predict(queries, mask_features))
        return predictions

    def losses(
        self,
        predictions: Sequence[MaskPrediction],
        logits: Sequence[Tensor],
        targets: Sequence[InstanceData],
    ) -> dict[str, Tensor]:
        """Compute the losses of :meth:`losses_and_matches` without returning the matches."""
        return self.losses_and_matches(predictions, logits, targets)[0]

    def losses_and_matches(
        self,
        predictions: Sequence[MaskPrediction],
        logits: Sequence[Tensor],
        targets: Sequence[InstanceData],
    ) -> tuple[dict[str, Tensor], list[Matches]]:
        """Compute Mask2Former's matching, class losses and mask losses of every layer in float32.

        Args:
            predictions: predictions of all layers, see :meth:`forward`.
            logits: class logits of every layer, (B, Q, K + 1), void last.
            targets: for every image, ``labels`` (N,) from 0 to K - 1 and ``masks`` (N, H, W) of the
                padded image. N may be 0.

        Returns:
            ``loss_cls``, ``loss_mask`` and ``loss_dice`` of the last layer. The losses of the other
            layers have prefixes, as in ``d0.loss_cls``. For every image, the indices of the last
            layer's matched queries and of their targets.

        Raises:
            TrainingError: the head has no ``train_cfg``.
        """
        if not self.train_cfg:
            raise TrainingError(
                "the head has no train_cfg (points, assigner, sampler); copy it from "
                "configs/_base_/models/odise.py"
            )
        # mmdet's losses read the number of classes from these attributes.
        self.num_classes = logits[0].shape[-1] - 1
        self.class_weight = self.loss_cls.weights(self.num_classes)
        self._matches = []
        with full_precision(logits[0]):
            losses = self.loss_by_feat(
                [layer.float() for layer in logits],
                [prediction.masks.float() for prediction in predictions],
                self._floats(targets),
                [{}] * len(targets),
            )
        # mmdet computes one layer after the other, and only returns the losses.
        matches, self._matches = self._matches[-1], []
        return losses, matches

    @staticmethod
    def _floats(targets: Sequence[InstanceData]) -> list[InstanceData]:
        """Convert masks to float32 once for all layers: 4 MB for one mask of 1024 x 1024."""
        return [InstanceData(labels=t.labels, masks=t.masks.float()) for t in targets]

    def _match(self, logits: Tensor, masks: Tensor, targets: InstanceData) -> Matches:
        """Match the queries of an image to its targets, at points drawn for this purpose.

        Args:
            logits: class logits, (Q, K + 1).
            masks: mask logits, (Q, h, w).
            targets: ``labels`` (N,) and ``masks`` (N, H, W) float32.
        """
        points = torch.rand((1, self.num_points, 2), device=logits.device)[0]
        queries = InstanceData(scores=logits, masks=sample_shared(masks.detach(), points))
        sampled = InstanceData(labels=targets.labels, masks=sample_shared(targets.masks, points))
        assigned = self.assigner.assign(queries, sampled, {})
        # The sampler copies the masks of all queries; points are much smaller than masks.
        chosen = self.sampler.sample(assigned, queries, sampled)
        return Matches(chosen.pos_inds, chosen.pos_assigned_gt_inds)

    def _loss_by_feat_single(
        self,
        cls_scores: Tensor,
        mask_preds: Tensor,
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Sequence[dict],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the losses of one layer: of classes, and of masks at uncertain points.

        The values and the random points are those of mmdet's method, which samples every target
        after copying it and converting it to floating point.

        Args:
            cls_scores: (B, Q, K + 1).
            mask_preds: (B, Q, h, w).
            batch_gt_instances: for every image, ``labels`` and float32 ``masks``.
            batch_img_metas: unused.
        """
        with torch.no_grad():
            matched = list(map(self._match, cls_scores, mask_preds, batch_gt_instances))
        self._matches.append(matched)
        labels = cls_scores.new_full(cls_scores.shape[:2], self.num_classes, dtype=torch.long)
        for row, (queries, places), targets in zip(
            labels, matched, batch_gt_instances, strict=True
        ):
            row[queries] = targets.labels[places]
        counted = torch.ones_like(labels)
        limit = self.train_cfg.get("ignore_unlabeled")
        if limit is not None:
            parts = zip(labels, mask_preds, batch_gt_instances, strict=True)
            counted = torch.stack(
                [(r < self.num_classes) | ~_is_unlabeled(m, t.masks, limit) for r, m, t in parts]
            ).long()
        labels, counted = labels.flatten(), counted.flatten()
        class_weight = cls_scores.new_tensor(self.class_weight)
        loss_cls = self.loss_cls(
            cls_scores.flatten(0, 1),
            labels,
            counted,
            # all queries may be left out
            avg_factor=(class_weight[labels] * counted).sum().clamp(min=class_weight.min()),
        )
        counts = [len(queries) for queries, _ in matched]
        # mmdet's assigned masks, at least one per image
        total = reduce_mean(cls_scores.new_tensor([sum(max(count, 1) for count in counts)]))
        total = max(total, 1)
        masks = torch.cat([m[queries] for m, (queries, _) in zip(mask_preds, matched, strict=True)])
        if not len(masks):
            return loss_cls, masks.sum(), masks.sum()
        with torch.no_grad():
            points = get_uncertain_point_coords_with_randomness(
                masks.unsqueeze(1),
                None,
                self.num_points,
                self.oversample_ratio,
                self.importance_sample_ratio,
            )
            parts = zip(batch_gt_instances, matched, points.split(counts), strict=True)
            wanted = torch.cat([sample_matched(t.masks, m, p) for t, m, p in parts])
        found = sample_each(masks, points)
        loss_dice = self.loss_dice(found, wanted, avg_factor=total)
        loss_mask = self.loss_mask(
            found.flatten(), wanted.flatten(), avg_factor=total * self.num_points
        )
        return loss_cls, loss_mask, loss_dice

    def _decoder_memories(self, memories: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        keys, positions = [], []
        for index, memory in enumerate(memories):
            key = self.decoder_input_projs[index](memory).flatten(2).transpose(1, 2)
            keys.append(key + self.level_embed.weight[index])
            no_padding = memory.new_zeros((len(memory), *memory.shape[-2:]), dtype=torch.bool)
            position = self.decoder_positional_encoding(no_padding)
            positions.append(position.flatten(2).transpose(1, 2).to(key.dtype))
        return keys, positions

    def _norm(self, queries: Tensor) -> Tensor:
        return self.transformer_decoder.post_norm(queries)

    def _masks(self, queries: Tensor, mask_features: Tensor) -> Tensor:
        return torch.einsum("bqc,bchw->bqhw", self.mask_embed(queries), mask_features)

    def _attention_mask(self, masks: Tensor) -> Tensor:
        """Return True where a query must not attend; a query with an empty mask attends to all."""
        hidden = masks.detach().flatten(2) < 0  # probability below 0.5
        hidden &= ~hidden.all(-1, keepdim=True)
        return hidden.repeat_interleave(self.num_heads, dim=0)

    def _predict(self, queries: Tensor, mask_features: Tensor) -> MaskPrediction:
        queries = self._norm(queries)
        masks = self._masks(queries, mask_features)
        objectness = self.cls_embed(queries) if self.cls_embed is not None else None
        embeddings = None
        if self.mask_embedding is not None:
            embeddings = self.mask_embedding(queries, masks, mask_features)
        return MaskPrediction(masks, embeddings, objectness)


def _is_unlabeled(masks: Tensor, targets: Tensor, limit: float) -> Tensor:
    """Return whether masks lie mostly on pixels that no target covers, (Q,) bool.

    Args:
        masks: mask logits, (Q, h, w).
        targets: masks of the annotated segments, (N, H, W) float32.
        limit: the fraction of a mask's pixels from which on it counts as unlabeled, in [0, 1].
    """
    with torch.no_grad():
        labeled = targets.amax(0) if len(targets) else targets.new_zeros(targets.shape[1:])
        free = 1 - F.adaptive_avg_pool2d(labeled[None], masks.shape[-2:])[0]
        inside = (masks > 0).to(free.dtype)
        area = inside.sum((1, 2))
        return (area > 0) & (torch.einsum("qhw,hw->q", inside, free) >= limit * area)


def _class_loss(cfg: dict | None) -> ConfigDict:
    """Config of the class loss as mmdet's head expects it, with the entry ``class_weight``."""
    cfg = ConfigDict(cfg or dict(type="OpenVocabCrossEntropyLoss"))
    cls = MODELS.get(cfg.type) if isinstance(cfg.type, str) else cfg.type
    if not (isinstance(cls, type) and issubclass(cls, OpenVocabCrossEntropyLoss)):
        raise ConfigError(
            f"loss_cls={cfg.type!r}: the head needs OpenVocabCrossEntropyLoss, whose void_weight "
            "works for any number of classes"
        )
    return ConfigDict({"class_weight": None, **cfg, "type": cls})


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)
