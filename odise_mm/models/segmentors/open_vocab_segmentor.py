"""The whole model. Each of its parts can be replaced in the config.

image -> captioner -> backbone -> neck -> head -> classifiers -> ensemble -> results
                                            |
                             losses of every layer (training), auxiliary losses
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from odise_mm.config.building import build_part
from odise_mm.errors import ConfigError
from odise_mm.models.losses.auxiliary_loss import TrainingOutputs, check_auxiliary_losses
from odise_mm.models.segmentors.base_segmentor import BaseSegmentor, Names, Samples
from odise_mm.models.segmentors.feature_cache import FeatureCache
from odise_mm.models.segmentors.regions import with_regions
from odise_mm.models.segmentors.results import SegmentedImages, cropped
from odise_mm.models.segmentors.supervision import (
    check_embeddings,
    check_grounding,
    check_void,
    trains_with_labels,
    what_is_trained,
)
from odise_mm.models.segmentors.targets import captions_of, targets_of, words_of
from odise_mm.models.segmentors.tiled_features import (
    STRIDES,
    Captions,
    Pyramid,
    check_pyramid,
    check_sizes,
    groups_of_equal,
    stack_pyramids,
    tiled_pyramids,
)
from odise_mm.registry import MODELS
from odise_mm.utils.old_keys import renamed_arguments
from odise_mm.utils.settings import check_flag, check_whole
from odise_mm.vocabulary import Vocabulary


@MODELS.register_module()
class OpenVocabSegmentor(BaseSegmentor):
    """Open-vocabulary panoptic, semantic and instance segmentation from one forward pass.

    ODISE, arXiv 2303.04803, figure 2. Parts are configs or modules. Some arguments of a part may be
    left out of its config: ``clip``, ``text_encoder``, ``in_channels``, ``in_strides``,
    ``empty_context``, ``time_width``, ``num_steps`` and ``prompt_encoder`` are then taken from the
    other parts. So all parts share one CLIP, and channel counts are not repeated. The default of an
    ensemble's ``train_vocabulary`` is the vocabulary of a loaded checkpoint or of the training
    dataset, and until one of these is known, the model's vocabulary.

    A forward pass does not change the model. Several threads may call one model at the same time,
    each with its own vocabulary and settings. The caches that they share are locked.

    Args:
        backbone: computes raw feature maps from tiles and a captioner's condition.
        neck: computes a pyramid of strides 4, 8, 16, 32 from the raw feature maps. None: the raw
            feature maps are such a pyramid.
        head: computes masks and mask embeddings from the pyramid.
        classifiers: predict the classes of the masks; the first is the model's own. If it does not
            predict void, the head's ``objectness`` does.
        ensemble: computes class probabilities from the class predictions.
        vocabulary: default vocabulary; ``model.vocabulary`` can be set at any time.
        clip: the frozen CLIP that the parts share, if any part needs one.
        text_encoder: config of the :class:`~odise_mm.models.clip.text_encoder.TextEncoder` that
            the parts share.
        captioner: computes the backbone's condition from tiles; None for backbones without one.
        grounding: loss between masks and the words of captions, for caption supervision. It needs a
            head with ``objectness``. None for supervision by labels or by masks alone, and for
            models that are not trained.
        auxiliary_losses: losses in addition to Mask2Former's, which read the outputs of the last
            layer, see :class:`~odise_mm.models.AuxiliaryLoss`. They are not used in inference.
        detach_features: whether the head passes no gradients back to neck and backbone. A trained
            backbone is then trained by the auxiliary losses alone, as in MAFT+.
        tile_size: edge of the backbone's square tiles in pixels; None for whole images.
        max_tiles_per_batch: number of tiles, of one or several images, in a batch of the backbone.
            It limits memory and does not change results.
        test_cfg: default settings. ``score_threshold``: a panoptic segment must have a larger class
            probability. ``overlap_threshold``: a panoptic segment must keep at least this fraction
            of its mask. ``min_area``: a panoptic segment must have at least this number of pixels.
            ``topk``: number of instances, counted before stuff is dropped.
            ``instance_quality``: ``probability``, or ``logit`` as in OVRCOAT, see
            :func:`~odise_mm.models.postprocess.instance_inference`. ``mask_resize``: ``logit``, or
            ``probability`` as in MaskCLIP++: which values of masks are resized to the size of the
            image. ``semantic_resize``: ``masks``, or ``class_maps`` as in FC-CLIP, whose code
            resizes these if neither panoptic results nor instances are computed. ``panoptic``,
            ``semantic``, ``instance``: which results to compute. ``keep_queries``: whether samples
            get a field ``queries``, see :class:`~odise_mm.structures.Queries`.
        data_preprocessor: config of mmdet's preprocessor, which pads the images.

    Raises:
        ConfigError: ``grounding`` in a model for label supervision, a classifier that needs the
            mask embeddings of a head without any, auxiliary losses that do not fit the model, or
            a setting that is not allowed.
    """

    @renamed_arguments(fusion="ensemble")
    def __init__(
        self,
        backbone: dict | nn.Module,
        neck: dict | nn.Module | None,
        head: dict | nn.Module,
        classifiers: Sequence[dict | nn.Module],
        ensemble: dict | nn.Module,
        vocabulary: str | Vocabulary = "coco",
        clip: dict | nn.Module | None = None,
        text_encoder: dict | None = None,
        captioner: dict | nn.Module | None = None,
        grounding: dict | nn.Module | None = None,
        auxiliary_losses: Sequence[dict | nn.Module] = (),
        detach_features: bool = False,
        tile_size: int | None = 512,
        max_tiles_per_batch: int = 4,
        test_cfg: dict[str, Any] | None = None,
        data_preprocessor: dict | nn.Module | None = None,
    ) -> None:
        super().__init__(vocabulary, test_cfg, data_preprocessor)
        check_whole("max_tiles_per_batch", max_tiles_per_batch)
        if tile_size is not None:
            check_whole("tile_size", tile_size)
        check_flag("detach_features", detach_features)
        if not isinstance(auxiliary_losses, list | tuple):
            raise ConfigError(f"auxiliary_losses={auxiliary_losses!r} must be a list of losses")
        self.detach_features = detach_features
        self.feature_cache: FeatureCache | None = None
        self.tile_size = tile_size
        self.max_tiles_per_batch = max_tiles_per_batch
        shared = self._build_clip(clip, text_encoder)
        self.backbone = build_part(backbone, MODELS, **shared)
        check_sizes(tile_size, getattr(self.backbone, "tile_divisor", 1), self.data_preprocessor)
        shared.update(self.backbone.describe())
        self.captioner = None
        if captioner is not None:
            self.captioner = build_part(captioner, MODELS, **shared)
        self.neck = None if neck is None else build_part(neck, MODELS, **shared)
        if self.neck is None:
            check_pyramid(shared["in_strides"], tile_size)
            in_channels = list(shared["in_channels"])
        else:
            in_channels = [self.neck.out_channels] * len(STRIDES)
        self.head = build_part(head, MODELS, in_channels=in_channels)
        self._build_classifiers(classifiers, ensemble, shared, self.backbone, self.neck)
        check_embeddings(self.head, self.classifiers)
        check_void(self.head, self.classifiers, self.ensemble)
        self.grounding = None if grounding is None else build_part(grounding, MODELS)
        if self.grounding is not None:
            check_grounding(self.head, self.classifiers[0])
        self.auxiliary_losses = nn.ModuleList(build_part(a, MODELS) for a in auxiliary_losses)
        check_auxiliary_losses(self.auxiliary_losses, trains_with_labels(self.head, self.grounding))

    def loss(
        self, inputs: Tensor, data_samples: Samples, vocabulary: Names = None
    ) -> dict[str, Tensor]:
        """Compute the losses after every decoder layer, and of the queries before the first.

        With labels, the classes are those of the vocabulary. With captions (``grounding``), every
        segment has the class "object", and class names are learned from the words of captions.
        With masks alone (a head with ``objectness`` and no trainable classifier), every segment has
        the class "object", and no class names are learned.

        Args:
            inputs: (B, 3, H, W) in [0, 1], RGB, padded at bottom and right.
            data_samples: samples with ``gt_instances``, see :func:`.targets.targets_of`, and for
                captions with metainfo ``words``, see :func:`.targets.words_of`.
            vocabulary: the classes; None means the model's vocabulary.

        Returns:
            Scalars ``loss_cls``, ``loss_mask``, ``loss_dice`` and, with captions,
            ``loss_grounding`` of the last layer. The losses of the other layers have prefixes, as
            in ``d0.loss_cls``. The auxiliary losses have their own names.

        Raises:
            DatasetError: a sample has no masks or words, or a label outside the vocabulary.
            TrainingError: the model is not configured for training.
            ConfigError: the first classifier cannot be trained.
        """
        classifier = what_is_trained(self.head, self.classifiers[0], self.grounding)
        with_labels = classifier is not None and self.grounding is None
        vocabulary = self._vocabulary_or_default(vocabulary)
        count = len(vocabulary) if with_labels else None
        targets = [targets_of(sample, inputs, count) for sample in data_samples]
        words = [] if self.grounding is None else words_of(data_samples)
        with self._arithmetic(inputs):
            pyramid = stack_pyramids(self.extract_pyramids(list(inputs), captions_of(data_samples)))
            seen = [level.detach() for level in pyramid] if self.detach_features else pyramid
            predictions = self.head(seen, all_layers=True)
            embeddings = [prediction.embeddings for prediction in predictions]
            if with_labels:
                logits = classifier.supervised_logits(embeddings, vocabulary)
            else:
                logits = [prediction.objectness for prediction in predictions]
            losses, matches = self.head.losses_and_matches(predictions, logits, targets)
            if self.grounding is not None:
                embed, scale = classifier.word_embeddings, classifier.scale
                losses |= self.grounding.of_layers(embeddings, words, embed, scale)
            if not self.auxiliary_losses:
                return losses
            last = predictions[-1]._replace(features=pyramid[-1])
            images = cropped(inputs, data_samples, "img_shape")
            outputs = TrainingOutputs(
                inputs,
                pyramid,
                last,
                targets,
                matches,
                vocabulary,
                classify=lambda: [c(last, images, vocabulary) for c in self.classifiers],
            )
            return losses | {loss.name: loss(outputs) for loss in self.auxiliary_losses}

    def segment(
        self,
        inputs: Tensor,
        data_samples: Samples | None = None,
        vocabulary: Names = None,
        regions: Tensor | None = None,
    ) -> Iterator[SegmentedImages]:
        """See :meth:`.BaseSegmentor.segment`."""
        vocabulary = self._vocabulary_or_default(vocabulary)
        captions = None if data_samples is None else captions_of(data_samples)
        padded = cropped(inputs, data_samples, "pad_shape")
        images = cropped(inputs, data_samples, "img_shape")
        with self._arithmetic(inputs):
            pyramids = dict(enumerate(self.extract_pyramids(padded, captions)))
        for places in groups_of_equal([image.shape for image in padded]):
            with self._arithmetic(inputs):
                # Pop each pyramid to free its memory as soon as it has been used.
                pyramid = stack_pyramids([pyramids.pop(i) for i in places])
                prediction = self.head(pyramid)[-1]
                if any(getattr(c, "reads_features", False) for c in self.classifiers):
                    prediction = prediction._replace(features=pyramid[-1])
                if any(getattr(c, "reads_pyramid", False) for c in self.classifiers):
                    prediction = prediction._replace(pyramid=pyramid)
                del pyramid
                whole = [images[i] for i in places]
                if regions is not None:
                    prediction = with_regions(prediction, regions, *whole)
                class_predictions = self._classify(prediction, whole, vocabulary)
            prediction = prediction._replace(features=None, pyramid=None)
            yield SegmentedImages(places, prediction, class_predictions, vocabulary)

    def extract_pyramids(
        self, images: Sequence[Tensor], captions: Captions = None
    ) -> list[Pyramid]:
        """Compute the pyramids of padded images; see :func:`.tiled_features.tiled_pyramids`."""
        return tiled_pyramids(
            images, captions, self.extract_tile_features, self.tile_size, self.max_tiles_per_batch
        )

    def extract_tile_features(
        self, tiles: Tensor, size: tuple[int, int], captions: Captions = None
    ) -> Pyramid:
        """Run captioner, backbone and neck on a batch of tiles.

        Args:
            tiles: (N, 3, S, S) in [0, 1].
            size: height and width of a tile in the image, in pixels.
            captions: caption of the image of every tile, if known.
        """
        if self.feature_cache is not None and self.training:
            features = self.feature_cache(tiles, captions, self._raw_features)
        else:
            features = self._raw_features(tiles, captions)
        return tuple(features) if self.neck is None else self.neck(features, size)

    def keep_features(self, cache: FeatureCache | None) -> None:
        """Freeze the captioner, and compute the raw features of every training tile only once.

        Args:
            cache: keeps the features; None computes them each time again, with a frozen captioner.

        Raises:
            ConfigError: the backbone is trained.
        """
        trained = [name for name, value in self.backbone.named_parameters() if value.requires_grad]
        if trained:
            raise ConfigError(
                f"the features of {type(self.backbone).__name__} cannot be kept, because the "
                f"backbone is trained (backbone.{trained[0]}, ...)"
            )
        if self.captioner is not None:
            self.captioner.requires_grad_(False)
        self.feature_cache = cache

    def _raw_features(self, tiles: Tensor, captions: Captions) -> Sequence[Tensor]:
        condition = () if self.captioner is None else (self.captioner(tiles, captions),)
        return self.backbone(tiles, *condition)
