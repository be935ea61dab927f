"""The whole model: five parts, each swapped by a line of the config.

image -> backbone (told by a captioner) -> neck -> head -> classifiers -> ensemble -> results
                                                   |
                            losses of every layer, in training
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from odise_mm.config.building import build_part
from odise_mm.errors import ConfigError
from odise_mm.models.segmentors.base_segmentor import BaseSegmentor, Names, Samples, Settings
from odise_mm.models.segmentors.results import SegmentedImages, check_finite, write_results
from odise_mm.models.segmentors.supervision import check_grounding, what_is_trained
from odise_mm.models.segmentors.targets import captions_of, targets_of, words_of
from odise_mm.models.segmentors.tiled_features import (
    Captions,
    Pyramid,
    check_sizes,
    groups_of_equal,
    stack_pyramids,
    tiled_pyramids,
)
from odise_mm.registry import MODELS
from odise_mm.utils.old_keys import renamed_arguments
from odise_mm.utils.settings import check_whole
from odise_mm.vocabulary import Vocabulary


@MODELS.register_module()
class OpenVocabSegmentor(BaseSegmentor):
    """Open-vocabulary panoptic, semantic and instance segmentation from one forward pass.

    ODISE, arXiv 2303.04803, figure 2. Parts are configs or modules. A part whose ``__init__`` asks
    for ``clip``, ``text_encoder``, ``in_channels``, ``in_strides``, ``empty_context``,
    ``time_width``, ``num_steps`` or ``prompt_encoder`` gets what the other parts have, unless its
    config says otherwise; so there is one CLIP, and channel counts stand nowhere twice. An ensemble
    that asks for ``train_vocabulary`` gets the model's vocabulary; a checkpoint that is loaded, or
    the dataset of a training, replaces it by the names of the training, unless the config says it.

    A forward pass changes nothing that others can see: several threads may call one model at once,
    each with names and settings of its own. Caches that they share are locked.

    Args:
        backbone: tiles, and a captioner's condition, to raw feature maps.
        neck: raw maps to a pyramid of strides 4, 8, 16, 32.
        head: pyramid to masks and mask embeddings.
        classifiers: predictions on the masks; the first is the model's own.
        ensemble: predictions to class probabilities.
        vocabulary: the names to look for where a call brings none; ``model.vocabulary`` may be set
            at any time.
        clip: the one frozen CLIP, if any part wants one.
        text_encoder: config of the cache before its text tower.
        captioner: tiles to the backbone's condition; None for backbones that take none.
        grounding: loss between masks and the words of captions (caption supervision, a head with
            ``objectness``); None for label supervision, or where nothing is trained.
        tile_size: edge of the square tiles that the backbone sees; None: whole images.
        max_tiles_per_batch: tiles, of one image or several, that run together: bounds memory, does
            not change results.
        test_cfg: settings where a call brings none: ``overlap_threshold`` (a panoptic segment must
            keep this share of its mask), ``topk`` (instances kept before stuff is dropped),
            ``panoptic``, ``semantic``, ``instance`` (which results to make).
        data_preprocessor: config of mmdet's preprocessor, which pads to multiples of 64.

    Raises:
        ConfigError: ``grounding`` in a model for labels; a setting that cannot be used.
    """

    @renamed_arguments(fusion="ensemble")
    def __init__(
        self,
        backbone: dict | nn.Module,
        neck: dict | nn.Module,
        head: dict | nn.Module,
        classifiers: Sequence[dict | nn.Module],
        ensemble: dict | nn.Module,
        vocabulary: str | Vocabulary = "coco",
        clip: dict | nn.Module | None = None,
        text_encoder: dict | None = None,
        captioner: dict | nn.Module | None = None,
        grounding: dict | nn.Module | None = None,
        tile_size: int | None = 512,
        max_tiles_per_batch: int = 4,
        test_cfg: dict[str, Any] | None = None,
        data_preprocessor: dict | nn.Module | None = None,
    ) -> None:
        super().__init__(vocabulary, test_cfg, data_preprocessor)
        check_whole("max_tiles_per_batch", max_tiles_per_batch)
        if tile_size is not None:
            check_whole("tile_size", tile_size)
        if not classifiers or isinstance(classifiers, Mapping):
            raise ConfigError(f"classifiers={classifiers!r}: a list of at least one")
        self.tile_size = tile_size
        self.max_tiles_per_batch = max_tiles_per_batch
        shared: dict[str, Any] = {}
        if clip is not None:
            self.clip = shared["clip"] = build_part(clip, MODELS)
            text_encoder = text_encoder or {"type": "TextEncoder"}
            shared["text_encoder"] = build_part(text_encoder, MODELS, **shared)
        self.backbone = build_part(backbone, MODELS, **shared)
        check_sizes(tile_size, getattr(self.backbone, "tile_divisor", 1), self.data_preprocessor)
        shared.update(self.backbone.describe())
        self.captioner = captioner and build_part(captioner, MODELS, **shared)
        self.neck = build_part(neck, MODELS, **shared)
        self.head = build_part(head, MODELS, in_channels=[self.neck.out_channels] * 4)
        self.classifiers = nn.ModuleList(build_part(c, MODELS, **shared) for c in classifiers)
        # Names that the config does not say: the model's, until a checkpoint or the training data
        # set say which they were.
        self.train_vocabulary_is_open = (
            isinstance(ensemble, Mapping) and ensemble.get("train_vocabulary") is None
        )
        self.ensemble = build_part(ensemble, MODELS, train_vocabulary=self.vocabulary)
        self.grounding = grounding and build_part(grounding, MODELS)
        if self.grounding is not None:
            check_grounding(self.head, self.classifiers[0])

    def loss(
        self, inputs: Tensor, data_samples: Samples, vocabulary: Names = None
    ) -> dict[str, Tensor]:
        """Losses after every decoder layer, those of the queries before the first included.

        With labels, the classes are those of the vocabulary. With captions (``grounding``), every
        segment is an "object", and names are learned from words.

        Args:
            inputs: (B, 3, H, W) in [0, 1], RGB, padded at bottom and right.
            data_samples: with ``gt_instances``, see :func:`.targets.targets_of`; for captions also
                metainfo ``words``, see :func:`.targets.words_of`.
            vocabulary: the classes; None: the model's.

        Returns:
            Scalars: ``loss_cls``, ``loss_mask``, ``loss_dice`` and, with captions,
            ``loss_grounding`` of the last layer; ``d0.loss_cls`` and so on of the others.

        Raises:
            DatasetError: a sample without masks or words, or with labels that the vocabulary lacks.
            TrainingError: the model is not configured for training.
            ConfigError: the first classifier cannot be trained.
        """
        own = what_is_trained(self.head, self.classifiers[0], self.grounding)
        with_labels, vocabulary = self.grounding is None, self._names(vocabulary)
        count = len(vocabulary) if with_labels else None
        targets = [targets_of(sample, inputs, count) for sample in data_samples]
        words = [] if with_labels else words_of(data_samples)
        with self._arithmetic(inputs):
            pyramids = self.extract_pyramids(list(inputs), captions_of(data_samples))
            predictions = self.head(stack_pyramids(pyramids), all_layers=True)
            embeddings = [prediction.embeddings for prediction in predictions]
            if with_labels:
                logits = own.supervised_logits(embeddings, vocabulary)
                return self.head.losses(predictions, logits, targets)
            logits = [prediction.objectness for prediction in predictions]
            losses = self.head.losses(predictions, logits, targets)
            embed, scale = own.word_embeddings, own.scale
            return losses | self.grounding.of_layers(embeddings, words, embed, scale)

    @torch.no_grad()
    def predict(
        self,
        inputs: Tensor,
        data_samples: Samples,
        vocabulary: Names = None,
        test_cfg: Settings = None,
    ) -> list[DetDataSample]:
        """Segment a batch; images of different size are independent of each other.

        Args:
            inputs: (B, 3, H, W) in [0, 1], RGB, padded at bottom and right.
            data_samples: with ``img_shape``, ``pad_shape`` and ``ori_shape``.
            vocabulary: the names to look for in this call; None: the model's.
            test_cfg: settings of this call; those that it leaves out are the model's.

        Returns:
            The samples, with the results that :func:`.results.add_results` lists.

        Raises:
            FloatingPointError: masks are not finite (broken weights, or float16 overflowed).
            VocabularyError, ConfigError: names or settings that there are not.
        """
        # Taken once: what others set on the model meanwhile is for later calls.
        vocabulary, test_cfg = self._names(vocabulary), self._settings(test_cfg)
        for found in self.segment(inputs, data_samples, vocabulary):
            self.results_from(found, data_samples, test_cfg)
        return list(data_samples)

    def segment(
        self, inputs: Tensor, data_samples: Samples | None = None, vocabulary: Names = None
    ) -> Iterator[SegmentedImages]:
        """Masks and what every classifier says of them, which :meth:`results_from` goes on with.

        Args:
            inputs: (B, 3, H, W) in [0, 1], RGB, padded at bottom and right.
            data_samples: with ``img_shape`` and ``pad_shape``; None: all images fill (H, W).
            vocabulary: as in :meth:`predict`.

        Yields:
            One item for all images of one padded size; it is computed when it is asked for.
        """
        vocabulary = self._names(vocabulary)
        padded, images, captions = inputs, inputs, None
        if data_samples is not None:
            pairs = list(zip(inputs, data_samples, strict=True))
            padded = [image[:, : s.pad_shape[0], : s.pad_shape[1]] for image, s in pairs]
            images = [image[:, : s.img_shape[0], : s.img_shape[1]] for image, s in pairs]
            captions = captions_of(data_samples)
        with self._arithmetic(inputs):
            pyramids = dict(enumerate(self.extract_pyramids(list(padded), captions)))
        for places in groups_of_equal([image.shape for image in padded]):
            with self._arithmetic(inputs):
                # Taken out as it is used: a pyramid is large.
                prediction = self.head(stack_pyramids([pyramids.pop(i) for i in places]))[-1]
                whole = [images[i] for i in places]
                class_predictions = [c(prediction, whole, vocabulary) for c in self.classifiers]
            yield SegmentedImages(places, prediction, class_predictions, vocabulary)

    def probabilities(self, found: SegmentedImages) -> Tensor:
        """Of the K classes and of void, all predictions joined: (B, Q, K + 1) float32.

        Raises:
            FloatingPointError: masks or probabilities are not finite.
        """
        with self._arithmetic(found.prediction.masks):
            joined = self.ensemble(found.class_predictions, found.vocabulary)
        check_finite((found.prediction.masks, joined), self.precision)
        return joined

    def results_from(
        self, found: SegmentedImages, data_samples: Samples, test_cfg: Settings = None
    ) -> None:
        """Write the results of :meth:`predict` into the samples of the images that were segmented.

        Args:
            found: an item of :meth:`segment`.
            data_samples: of the whole batch, with ``img_shape``, ``pad_shape`` and ``ori_shape``.
            test_cfg: all settings, as ``{**model.test_cfg, "topk": 9}``; None: the model's.
        """
        settings = self.test_cfg if test_cfg is None else test_cfg
        write_results(found, self.probabilities(found), data_samples, settings)

    def extract_pyramids(
        self, images: Sequence[Tensor], captions: Captions = None
    ) -> list[Pyramid]:
        """The feature pyramid of every padded image, see :func:`.tiled_features.tiled_pyramids`."""
        return tiled_pyramids(
            images, captions, self.extract_tile_features, self.tile_size, self.max_tiles_per_batch
        )

    def extract_tile_features(
        self, tiles: Tensor, size: tuple[int, int], captions: Captions = None
    ) -> Pyramid:
        """Captioner, backbone and neck on one batch of tiles, which are ``size`` in the image."""
        condition = () if self.captioner is None else (self.captioner(tiles, captions),)
        return self.neck(self.backbone(tiles, *condition), size)
