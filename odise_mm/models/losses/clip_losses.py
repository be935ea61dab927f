"""Losses for fine-tuning CLIP's image tower, of OVRCOAT and MAFT+."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from odise_mm.config.building import build_part
from odise_mm.errors import ConfigError
from odise_mm.models.losses.auxiliary_loss import AuxiliaryLoss, TrainingOutputs
from odise_mm.registry import MODELS
from odise_mm.utils.precision import full_precision
from odise_mm.utils.settings import check_flag, check_number, check_whole

# Window sizes of the pooled maps, as fractions of the width.
_SCALES = (1, 2, 4)


@MODELS.register_module()
class CLIPCrossEntropyLoss(AuxiliaryLoss):
    """Cross entropy of CLIP's class prediction for the matched masks (OVRCOAT, arXiv 2603.21386).

    The masks are those of the last decoder layer, with the match of the mask losses. The mean is
    over all matched masks of the batch of all processes; the published code averages on each
    process.

    Args:
        loss_weight: factor on the loss (published: 0.1).
        classifier: index of CLIP's classifier in the segmentor.
        twice: the published code feeds probabilities to a cross entropy that expects logits, so the
            softmax is applied twice. Even for a perfect prediction of one of K classes, the loss is
            then ``log(1 + (K - 1) / e)``. False applies it once.

    Raises:
        ConfigError: an argument has a value that is not allowed.
    """

    name = "loss_clip"
    needs_labels = True

    def __init__(self, loss_weight: float = 0.1, classifier: int = 1, twice: bool = True) -> None:
        super().__init__()
        check_number("loss_weight", loss_weight)
        check_whole("classifier", classifier, least=0)
        check_flag("twice", twice)
        self.loss_weight, self.classifier, self.twice = loss_weight, classifier, twice

    def forward(self, outputs: TrainingOutputs) -> Tensor:
        """See :meth:`AuxiliaryLoss.forward`; zero without matched masks."""
        logits = outputs.class_logits(self.classifier)
        with full_precision(logits):
            scores = logits.softmax(-1) if self.twice else logits
            rows = torch.cat([s[q] for s, (q, _) in zip(scores, outputs.matches, strict=True)])
            labels = torch.cat(
                [
                    target.labels[index]
                    for target, (_, index) in zip(outputs.targets, outputs.matches, strict=True)
                ]
            )
            count = reduce_mean(rows.new_tensor(float(len(rows)))).clamp(min=1)
            return self.loss_weight * F.cross_entropy(rows, labels, reduction="sum") / count


@MODELS.register_module()
class MaskAwareLoss(AuxiliaryLoss):
    """Ranks masks by their quality: "ranking loss" of MAFT+ (arXiv 2408.00744).

    For every annotated segment, the probabilities that CLIP's classifier gives to its class, of all
    Q masks, are compared with the masks' soft IoU with the segment: smooth L1, averaged over
    queries and segments. The IoUs of a segment are scaled to [0, 1], and have no gradient. The mean
    is over the segments of all processes; the published code averages on each process.

    If all masks have the same IoU with a segment, all of its targets are 0, as in the published
    code.

    Args:
        loss_weight: factor on the loss (published: 1).
        classifier: index of CLIP's classifier in the segmentor.

    Raises:
        ConfigError: an argument has a value that is not allowed.
    """

    name = "loss_ranking"
    needs_labels = True

    def __init__(self, loss_weight: float = 1.0, classifier: int = 1) -> None:
        super().__init__()
        check_number("loss_weight", loss_weight)
        check_whole("classifier", classifier, least=0)
        self.loss_weight, self.classifier = loss_weight, classifier

    def forward(self, outputs: TrainingOutputs) -> Tensor:
        """See :meth:`AuxiliaryLoss.forward`; zero without segments."""
        logits = outputs.class_logits(self.classifier)
        with full_precision(logits):
            total, segments = logits.sum() * 0, 0
            for scores, masks, target in zip(
                logits.softmax(-1), outputs.prediction.masks, outputs.targets, strict=True
            ):
                wanted = scaled_to_one(soft_iou(masks, target.masks))
                found = scores.T[target.labels]
                total = total + F.smooth_l1_loss(found, wanted, reduction="sum")
                segments += len(target.labels)
            count = reduce_mean(logits.new_tensor(float(segments))).clamp(min=1)
            return self.loss_weight * total / (count * logits.shape[1])


@torch.no_grad()
def soft_iou(masks: Tensor, segments: Tensor) -> Tensor:
    """Compute the IoU of mask probabilities with binary segments.

    Args:
        masks: mask logits, (Q, h, w). Their probabilities are resized to (H, W).
        segments: (N, H, W) bool.

    Returns:
        (N, Q) float32 in [0, 1], without gradient.
    """
    probabilities = F.interpolate(
        masks.float().sigmoid()[None], segments.shape[-2:], mode="bilinear", align_corners=False
    )[0].flatten(1)
    inside = segments.flatten(1).float()
    common = inside @ probabilities.T
    union = inside.sum(1)[:, None] + probabilities.sum(1) - common
    return common / (union + 1e-7)


def scaled_to_one(rows: Tensor) -> Tensor:
    """Scale each row of (N, Q) so that its smallest value becomes 0 and its largest 1."""
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    return (rows - low) / (high - low + 1e-8)


class _TeacherLoss(AuxiliaryLoss):
    """Base of losses that compare the last map of the pyramid with that of a frozen teacher.

    The teacher is built in the first training step. A model that only segments does not have it,
    and no checkpoint contains it.
    """

    def __init__(self, teacher: dict | nn.Module, loss_weight: float) -> None:
        super().__init__()
        check_number("loss_weight", loss_weight)
        if not isinstance(teacher, nn.Module) and not (
            isinstance(teacher, dict) and "type" in teacher
        ):
            raise ConfigError(
                f"teacher={teacher!r} must be the config of a backbone, such as "
                "dict(type='OpenCLIPBackbone', model=..., weights=...) with the weights that the "
                "training starts from"
            )
        self.loss_weight = loss_weight
        self.teacher_cfg = teacher
        self.teacher: nn.Module | None = None

    def forward(self, outputs: TrainingOutputs) -> Tensor:
        """See :meth:`AuxiliaryLoss.forward`.

        Raises:
            ConfigError: the teacher's map has another shape than the pyramid's last map.
        """
        student = outputs.pyramid[-1]
        with torch.no_grad():
            teacher = self._teacher_of(outputs.images)(outputs.images)[-1]
        if teacher.shape != student.shape:
            raise ConfigError(
                f"the teacher's map {tuple(teacher.shape)} and the last map of the pyramid "
                f"{tuple(student.shape)} differ in shape: use the architecture of the clip"
            )
        with full_precision(student):
            return self.loss_weight * self.compare(student.float(), teacher.float())

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the unweighted loss of two maps (B, C, h, w) float32, a scalar."""
        raise NotImplementedError

    def _teacher_of(self, images: Tensor) -> nn.Module:
        if self.teacher is None:
            with torch.device("meta") if images.is_meta else nullcontext():
                teacher = build_part(self.teacher_cfg, MODELS)
            if not getattr(teacher, "frozen", False):
                raise ConfigError(f"the teacher {type(teacher).__name__} must be a frozen backbone")
            self.teacher = teacher.to(images.device)
        return self.teacher


@MODELS.register_module()
class RepresentationCompensationLoss(_TeacherLoss):
    """Keeps the fine-tuned CLIP near the original one (MAFT+, arXiv 2408.00744; OVRCOAT).

    Negative features are set to 0. Both maps are averaged in windows of the whole, half and a
    quarter of the width; the averages are summed over rows and over columns; the loss is the smooth
    L1 between the sums of student and teacher.

    Args:
        teacher: the original CLIP's image tower: config of a frozen backbone.
        loss_weight: factor on the loss (published: 0.1 in MAFT+; 0 in OVRCOAT).
        align: a map that is not square is first resized to a square of its longer side. The
            published code nevertheless takes the windows from the original width, so for a portrait
            they are smaller than intended. True takes them from the square.

    Raises:
        ConfigError: an argument has a value that is not allowed.
    """

    name = "loss_compensation"

    def __init__(
        self, teacher: dict | nn.Module, loss_weight: float = 0.1, align: bool = False
    ) -> None:
        super().__init__(teacher, loss_weight)
        check_flag("align", align)
        self.align = align

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See the base class."""
        return F.smooth_l1_loss(self._sums(student), self._sums(teacher))

    def _sums(self, features: Tensor) -> Tensor:
        """Sums over rows and columns at all scales, (B, S)."""
        height, width = features.shape[-2:]
        side = max(height, width)
        features = features.relu()
        if height != width:
            features = F.interpolate(features, (side, side), mode="bilinear", align_corners=False)
        window = side if self.align else width
        sums = []
        for scale in _SCALES:
            pooled = F.avg_pool2d(features, max(window // scale, 1))
            sums += [pooled.sum(2).flatten(1), pooled.sum(3).flatten(1)]
        return torch.cat(sums, dim=1)


@MODELS.register_module()
class GramDistillationLoss(_TeacherLoss):
    """Keeps the correlations between CLIP's channels (option of OVRCOAT, arXiv 2603.21386).

    Channels are L2-normalized over positions. The loss is the mean squared difference of the
    channel x channel Gram matrices of student and teacher. The published config does not use it.

    Args:
        teacher: see :class:`RepresentationCompensationLoss`.
        loss_weight: factor on the loss (published: 0).

    Raises:
        ConfigError: an argument has a value that is not allowed.
    """

    name = "loss_gram"

    def __init__(self, teacher: dict | nn.Module, loss_weight: float = 1.0) -> None:
        super().__init__(teacher, loss_weight)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See the base class."""
        return F.mse_loss(_gram(student), _gram(teacher))


def _gram(features: Tensor) -> Tensor:
    channels = F.normalize(features.flatten(2), dim=2)
    return channels @ channels.transpose(1, 2)
