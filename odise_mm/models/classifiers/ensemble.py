"""The ensemble of class predictions (ODISE, section 3.6, equation 10)."""

import copy
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from odise_mm.errors import ConfigError
from odise_mm.models.classifiers.base import NEVER, ClassPrediction, NameTensors
from odise_mm.registry import MODELS
from odise_mm.utils.settings import check_flag, check_weight
from odise_mm.vocabulary import Vocabulary

MEMORY_ALPHA, MEMORY_BETA = 0.5, 0.8
"""Default weights of a memory."""


@MODELS.register_module()
class GeometricEnsemble(nn.Module):
    """Weighted geometric mean of the model's own class prediction and CLIP's.

    ODISE, equation 10: ``p ~ p_own^(1 - w) * p_clip^w``. A class is a base class if it shares a
    name with the training vocabulary, and else a novel class. The weight w is ``alpha`` for base
    classes and ``beta`` for novel classes. The mean is computed with logarithms, so the result
    stays finite where probabilities underflow. The published code's logits become infinite in this
    case.

    More than two predictions enter one after the other, each weighted against all before it like
    CLIP's prediction against the model's own: ``p ~ p_before^(1 - w) * p_next^w``, with a pair of
    weights of ``more``.

    The prediction of a :class:`~odise_mm.models.MemoryClassifier` (``ClassPrediction.relative``)
    is put on the scale of the last prediction of words, usually CLIP's, with the logits l(c). Let h
    be the mean over an image's masks, each weighted by 1 - p_void, of the highest logit of the
    classes without examples, and a that of their mean logit. (If all classes have examples, of all
    that words know.) An example counts like a word with the logit
    ``v(c) = a + (h - a) * relative(c)``: as high as the best word's usually is if the mask is as
    similar as one example is to another, and like any word's if it is unrelated.

    As with synonyms, the better of the two counts: ``j(c) = max(l(c), v(c))`` for classes with
    examples, and l(c) for the others. What the examples add to the words' probability is
    ``m(c) = w * r * max(softmax(j)(c) - softmax(l)(c), 0)`` for the former. r is the probability by
    which the memory recognizes the mask. m is mixed in linearly, void included, as in kNN-LM (arXiv
    1911.00172, equation 3): ``p(c) <- (1 - sum over k of m(k)) * p(c) + m(c)``. So classes without
    examples keep their proportions.

    The weight w is ``memory_alpha`` for base classes and ``memory_beta`` for novel classes, times
    the ``memory_weight`` of a call, which is 1 by default.

    Args:
        alpha: weight of CLIP's prediction for base classes. Published: 0.3 (trained with labels),
            0.35 (captions).
        beta: weight of CLIP's prediction for novel classes. Published: 0.7 (labels), 0.65
            (captions).
        train_vocabulary: name or file of the vocabulary that the model was trained on. The
            segmentor fills it in if the config leaves it out.
        valid_masks_only: whether CLIP's prediction counts only for masks that cover a position of
            its feature map (``ClassPrediction.valid``), as in FC-CLIP's models with ResNets.
        drop_void: whether void competes with the classes, so that a mask that is more likely void
            than any class is left out of panoptic results. False: void only lowers the
            probabilities of the classes, for masks that were selected by their scores before.
        more: weights for base and for novel classes of the third and each later prediction.
        memory_alpha: weight of a memory's examples of base classes.
        memory_beta: the same for novel classes.

    Raises:
        ConfigError: a weight is not a number from 0 to 1.
        VocabularyError: the training vocabulary is unknown.
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        train_vocabulary: str = "coco",
        valid_masks_only: bool = False,
        drop_void: bool = True,
        more: Sequence[tuple[float, float]] = (),
        memory_alpha: float = MEMORY_ALPHA,
        memory_beta: float = MEMORY_BETA,
    ) -> None:
        super().__init__()
        check_weight("alpha", alpha)
        check_weight("beta", beta)
        check_weight("memory_alpha", memory_alpha)
        check_weight("memory_beta", memory_beta)
        for pair in more:
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise ConfigError(
                    f"more={more!r} must be a list of pairs of weights, for base and for novel "
                    "classes"
                )
            for weight in pair:
                check_weight("more", weight)
        self.more = tuple(tuple(pair) for pair in more)
        self.memory_alpha, self.memory_beta = memory_alpha, memory_beta
        self.memory_weight = 1.0
        check_flag("valid_masks_only", valid_masks_only)
        check_flag("drop_void", drop_void)
        self.valid_masks_only = valid_masks_only
        self.drop_void = drop_void
        self.alpha, self.beta = alpha, beta
        self.train_vocabulary = (
            train_vocabulary
            if isinstance(train_vocabulary, Vocabulary)
            else Vocabulary.load(train_vocabulary)
        )

    def with_weights(
        self,
        alpha: float | None = None,
        beta: float | None = None,
        memory_weight: float | None = None,
    ) -> "GeometricEnsemble":
        """Return a copy with other weights; None keeps a weight.

        Args:
            alpha: weight of CLIP's prediction for base classes.
            beta: the same for novel classes.
            memory_weight: factor on ``memory_alpha`` and ``memory_beta``; 0 leaves the memory out.

        Raises:
            ConfigError: a weight is not a number from 0 to 1.
        """
        changed = copy.copy(self)
        given = dict(alpha=alpha, beta=beta, memory_weight=memory_weight)
        for name, value in given.items():
            if value is not None:
                check_weight(name, value)
                setattr(changed, name, value)
        return changed

    def forward(
        self, class_predictions: Sequence[ClassPrediction], vocabulary: Vocabulary
    ) -> Tensor:
        """Compute class probabilities.

        Args:
            class_predictions: the model's own, which must have ``p_void``, and optionally CLIP's,
                further ones, and those of memories.
            vocabulary: the K classes of the predictions.

        Returns:
            (B, Q, K + 1) float32; the last column is void. Rows sum to 1; without ``drop_void``,
            the last column is 0, and without a memory rows sum to 1 - p_void.

        Raises:
            ValueError: there is no prediction, or one without weights, or the first has no
                ``p_void``.
        """
        words = [each for each in class_predictions if each.abstains is None]
        if not words or class_predictions[0].p_void is None or words[0] is not class_predictions[0]:
            raise ValueError(
                f"{type(self).__name__} needs predictions of which the first has p_void; got "
                f"{len(class_predictions)}. Void is predicted by the first classifier "
                "(null_class=True) or by the head (objectness=True)"
            )
        if len(words) > 2 + len(self.more):
            raise ValueError(
                f"{type(self).__name__} has weights for {2 + len(self.more)} predictions and got "
                f"{len(words)}: set `more` to a pair of weights for each after the second"
            )
        p_void = self.void_probability(words)[..., None]
        taken = []
        for memory in class_predictions:
            if memory.abstains is not None:
                taken.append(self._examples(words[-1], memory, 1 - p_void, vocabulary))
        joined = self.ensemble_logits(words, vocabulary).softmax(-1)
        void = p_void if self.drop_void else torch.zeros_like(p_void)
        probabilities = torch.cat([joined * (1 - p_void), void], dim=-1)
        for share in taken:
            mixed = probabilities * (1 - share.sum(-1, keepdim=True))
            probabilities = torch.cat([mixed[..., :-1] + share, mixed[..., -1:]], -1)
        return probabilities

    def _examples(
        self, words: ClassPrediction, memory: ClassPrediction, kept: Tensor, vocabulary: Vocabulary
    ) -> Tensor:
        """Compute a memory's shares m of the classes, (B, Q, K).

        Args:
            words: the last prediction of words.
            memory: that of a memory.
            kept: 1 - p_void, (B, Q, 1).
            vocabulary: the K classes.
        """
        base = self._base(vocabulary, kept.device)
        weight = self.memory_weight * torch.where(base, self.memory_alpha, self.memory_beta)
        weight = weight * (1 - memory.p_void.float()[..., None])
        logits, taught = words.logits.float(), ~memory.abstains[:, None]
        read = logits > NEVER / 2
        rest = read & ~taught
        rest = torch.where(rest.any(-1, keepdim=True), rest, read)
        average = logits.masked_fill(~rest, 0).sum(-1, keepdim=True) / rest.sum(-1, keepdim=True)
        best = logits.masked_fill(~rest, NEVER).amax(-1, keepdim=True)
        of_mask = kept / kept.sum(1, keepdim=True).clamp_min(1e-6)
        low, high = ((of_mask * each).sum(1, keepdim=True) for each in (average, best))
        shown = low + (high - low) * memory.relative.float()
        better = taught & (shown > logits)
        share = torch.where(better, shown, logits).softmax(-1) - logits.softmax(-1)
        return weight * share.masked_fill(~better, 0).clamp_min(0)

    def void_probability(self, class_predictions: Sequence[ClassPrediction]) -> Tensor:
        """Return the model's own probability of void, (B, Q) float32."""
        return class_predictions[0].p_void.float()

    def ensemble_logits(
        self, class_predictions: Sequence[ClassPrediction], vocabulary: Vocabulary
    ) -> Tensor:
        """Compute the logarithm of equation 10, without void: (B, Q, K) float32, finite.

        Args:
            class_predictions: those that do not abstain.
            vocabulary: the K classes.
        """
        *before, last = class_predictions
        if not before:
            return last.logits.float().log_softmax(-1)
        own = self.ensemble_logits(before, vocabulary)
        alpha, beta = ((self.alpha, self.beta), *self.more)[len(before) - 1]
        weight = torch.where(self._base(vocabulary, own.device), alpha, beta)
        if self.valid_masks_only and last.valid is not None:
            weight = weight * last.valid[..., None]
        return (1 - weight) * own + weight * last.logits.float().log_softmax(-1)

    def _base(self, vocabulary: Vocabulary | NameTensors, device: torch.device) -> Tensor:
        """Return which of the K classes are base classes, (K,) bool."""
        if isinstance(vocabulary, NameTensors):
            return vocabulary.base
        return torch.tensor(_is_base(vocabulary, self.train_vocabulary), device=device)


@lru_cache(maxsize=16)
def _is_base(vocabulary: Vocabulary, train_vocabulary: Vocabulary) -> tuple[bool, ...]:
    return vocabulary.overlap(train_vocabulary)
