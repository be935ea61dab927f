"""The ensemble of class predictions (ODISE, section 3.6, equation 10)."""

import copy
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from odise_mm.errors import ConfigError
from odise_mm.models.classifiers.base import CERTAIN, NEVER, ClassPrediction, NameTensors
from odise_mm.registry import MODELS
from odise_mm.utils.settings import check_flag, check_weight
from odise_mm.vocabulary import Vocabulary

MEMORY_ALPHA, MEMORY_BETA = 0.5, 1.0
"""Default weights of a memory."""
# Of a memory, see GeometricEnsemble. All are in units of its relative similarity.
_TIE = 0.9  # similarity at which examples and the usual best word are equally good
_SOFTNESS = 0.1
_BETTER_WORD = 0.75  # weight of a word that fits better than usual
_DOUBT, _EVEN, _FEW_WORDS = 0.1, math.log(0.25), 40  # weight of how unsure words are, see there
_HELP = 0.1  # what words that are sure of a class add to its similarity or take from it
_CHOICE = 0.05  # temperature of the choice among the classes with examples
_ALL_WORDS = 20  # number of words of which void says as much about the mask as about the words


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
    replaces that of words, p, where examples fit a mask better than words do:
    ``p(c) <- (1 - sum over k of m(k)) * p(c) + m(c)``, the linear mixture of kNN-LM (arXiv
    1911.00172, equation 3), with ``m(c) = w(c) * r * softmax(s / 0.05)(c)`` over the classes with
    examples. All of it is times ``1 - p_void``; besides, m(c) gets the part ``f(c) * m(c)`` of
    void, which becomes ``p_void * (1 - sum over k of f(k) * m(k))``.

    - ``s(c) = relative(c) + 0.1 * (2 p(c) - 1)``: words count, too, if the text encoder knows the
      name; otherwise ``s(c) = relative(c)``.
    - ``r = sigmoid((max s - 0.9 - 0.75 * e + 0.1 * n / (n + 40) * d) / 0.1)`` is the probability
      that the examples are right. n is the number of words, those of classes without examples (if
      there are none, all that the text encoder knows).
    - ``e = (b - h) / max(h - a, 1)``, limited to -1 to 1, is how much better than usual a word
      fits: b is the highest logit of these words in the last prediction of words, usually CLIP's, h
      its mean over the image's masks, each weighted by 1 - p_void, and a that of their mean logit.
    - ``d = log(1.001 - max p) - log(1 / 4)``, with p over these words alone, is how unsure they
      are. The fewer words there are, the less it says, so it counts n / (n + 40).
    - ``f(c) = (1 - p(c)) * 20 / (n + 20)``, with p(c) = 0 for names that the text encoder does not
      know, and for a single class: among few words, void can mean that none of them fits; among
      many, or if a word fits, it means that the mask is bad. For a mask that is an example itself,
      f is 1.

    The numbers began as a logistic regression on scenes of the toy world, and were adjusted on the
    same scenes; the formula is ours.

    The weight w is ``memory_alpha`` for base classes and ``memory_beta`` for novel classes, times
    the ``memory_weight`` of a call, which is 1 by default, and the probability by which the memory
    recognizes the mask.

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
            the last column is 0, and they sum to 1 minus the probability of void.

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
        named = self.ensemble_logits(words, vocabulary).softmax(-1)
        classes, void = named * (1 - p_void), p_void
        for memory in class_predictions:
            if memory.abstains is not None:
                share, of_void = self._examples(named, words[-1], memory, 1 - p_void, vocabulary)
                classes = classes * (1 - share.sum(-1, keepdim=True))
                classes = classes + share * (1 - (1 - of_void) * void)
                void = void * (1 - (of_void * share).sum(-1, keepdim=True))
        return torch.cat([classes, void if self.drop_void else torch.zeros_like(void)], dim=-1)

    def _examples(
        self,
        named: Tensor,
        words: ClassPrediction,
        memory: ClassPrediction,
        kept: Tensor,
        vocabulary: Vocabulary,
    ) -> tuple[Tensor, Tensor]:
        """Compute a memory's shares m of the classes and f, both (B, Q, K).

        Args:
            named: probabilities of the classes by words, without void, (B, Q, K).
            words: the last prediction of words.
            memory: that of a memory.
            kept: 1 - p_void, (B, Q, 1).
            vocabulary: the K classes.
        """
        base = self._base(vocabulary, kept.device)
        weight = self.memory_weight * torch.where(base, self.memory_alpha, self.memory_beta)
        taught = ~memory.abstains[:, None]
        read = words.logits > NEVER / 2
        rest = read & ~taught
        rest = torch.where(rest.any(-1, keepdim=True), rest, read)
        similar = memory.relative.float() + _HELP * (2 * named - 1) * read
        similar = similar.masked_fill(~taught, NEVER)
        trust = similar.amax(-1, keepdim=True) - _TIE - _words_against(named, words, rest, kept)
        right = (trust / _SOFTNESS).sigmoid() * (1 - memory.p_void.float()[..., None])
        share = weight * right * (similar / _CHOICE).softmax(-1) * taught
        # A single class has p = 1, whether its word fits or not.
        fits = named * read * (named.shape[-1] > 1)
        of_void = (1 - fits) * _ALL_WORDS / (rest.sum(-1, keepdim=True) + _ALL_WORDS)
        itself = memory.relative.amax(-1, keepdim=True) >= CERTAIN
        return share, torch.where(itself, 1.0, of_void)

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


def _words_against(named: Tensor, words: ClassPrediction, rest: Tensor, kept: Tensor) -> Tensor:
    """Compute how much words speak against examples, (B, Q, 1), see GeometricEnsemble.

    Args:
        named: probabilities of the classes, (B, Q, K).
        words: the last prediction of words.
        rest: the classes whose words are compared with the examples, broadcast to (B, Q, K).
        kept: 1 - p_void, (B, Q, 1).
    """
    count = rest.sum(-1, keepdim=True)
    logits = words.logits.float()
    mean = logits.masked_fill(~rest, 0).sum(-1, keepdim=True) / count.clamp_min(1)
    best = logits.masked_fill(~rest, NEVER).amax(-1, keepdim=True)
    kept = kept + 1e-9  # all masks may be void
    of_mask = kept / kept.sum(1, keepdim=True)
    low, high = ((of_mask * each).sum(1, keepdim=True) for each in (mean, best))
    # One word has no spread, and a few may have little; then a logit is the unit.
    excess = ((best - high) / (high - low).clamp_min(1)).clamp(-1, 1)
    among = named.masked_fill(~rest, 0)
    sure = among.amax(-1, keepdim=True) / among.sum(-1, keepdim=True).clamp_min(1e-9)
    doubt = torch.log(1 - sure + 1e-3) - _EVEN
    against = _BETTER_WORD * excess - _DOUBT * count / (count + _FEW_WORDS) * doubt
    return against.masked_fill(count == 0, 0.0)


@lru_cache(maxsize=16)
def _is_base(vocabulary: Vocabulary, train_vocabulary: Vocabulary) -> tuple[bool, ...]:
    return vocabulary.overlap(train_vocabulary)
