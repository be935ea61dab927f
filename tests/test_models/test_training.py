"""Tests of the losses against plain formulas, and of gradients, processes and initialization."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmdet.structures import DetDataSample
from mmdet.utils import reduce_mean
from mmengine.dist import all_gather
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from odise_mm.errors import ConfigError, DatasetError, TrainingError
from odise_mm.models import Classifier, ClassPrediction, GroundingLoss, OpenVocabSegmentor
from odise_mm.models.frozen import FrozenModule
from odise_mm.models.heads.mask2former_head import MaskPrediction
from odise_mm.registry import MODELS
from odise_mm.vocabulary import Vocabulary
from tests.support.parts import load_config, meta_model, segmentor_config
from tests.support.training import (
    WORDS,
    make_batch,
    make_model,
    make_sample,
    repeating_points,
)

VOCABULARY = Vocabulary(
    (("cat", "kitten"), ("brick wall",), ("sky",), ("person", "child")), (True, False, False, True)
)
BOTH = pytest.mark.parametrize("captions", [False, True], ids=["label", "caption"])


def model_of(captions: bool, **changes: object) -> OpenVocabSegmentor:
    model = make_model(captions, **changes)
    model.vocabulary = VOCABULARY
    return model


def batch_of(model: OpenVocabSegmentor, counts: tuple[int, ...] = (3, 5)) -> dict:
    return make_batch(model, counts, [WORDS] * len(counts) if model.grounding else None)


def total(losses: dict[str, Tensor]) -> Tensor:
    return sum(losses.values())


# ------------------------------------------------------------------------ against formulas


def sample_map(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Sample a map (H, W) bilinearly at points (P, 2), x and y from 0 to 1; 0 outside."""
    height, width = values.shape
    padded = np.pad(values.astype(np.float64), 1)
    x, y = points[:, 0] * width + 0.5, points[:, 1] * height + 0.5  # in the padded map
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x0, y0 = x0.clip(0, width), y0.clip(0, height)
    fx, fy = x - x0, y - y0
    top = padded[y0, x0] * (1 - fx) + padded[y0, x0 + 1] * fx
    bottom = padded[y0 + 1, x0] * (1 - fx) + padded[y0 + 1, x0 + 1] * fx
    return top * (1 - fy) + bottom * fy


def bce(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, logits) - logits * targets


def dice(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    p = 1 / (1 + np.exp(-logits))
    return 1 - (2 * (p * targets).sum(-1) + 1) / (p.sum(-1) + targets.sum(-1) + 1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def class_logits(model: OpenVocabSegmentor, embeddings: np.ndarray) -> np.ndarray:
    """Compute the scaled cosines with every synonym and with the null embedding."""
    own = model.classifiers[0]
    weight, bias = (p.detach().double().numpy() for p in own.text_proj.parameters())
    raw = [[own.text_encoder([name])[0] for name in group] for group in VOCABULARY.synonyms]
    raw.append([own.null_embedding.detach()[0]])
    columns = []
    for group in raw:
        mapped = [weight @ text.double().numpy() + bias for text in group]
        cosines = [
            embeddings @ t / (np.linalg.norm(embeddings, axis=-1) * np.linalg.norm(t))
            for t in mapped
        ]
        columns.append(np.max(cosines, axis=0))
    scale = min(math.exp(own.logit_scale.item()), 100)
    return scale * np.stack(columns, axis=-1)


def reference_losses(logits: np.ndarray, masks: np.ndarray, samples: list, points: int) -> dict:
    """Match with weights 2 (class), 5 (BCE) and 5 (dice), then compute the losses in float64."""
    draw = repeating_points()
    match_at = draw((1, points, 2))[0].double().numpy()
    candidates = draw((1, 3 * points, 2))[0].double().numpy()
    certain = round(0.75 * points)
    extra = draw((1, points - certain, 2))[0].double().numpy()
    weighted, weights, mask_loss, dice_loss, count = 0.0, 0.0, 0.0, 0.0, 0
    for i, sample in enumerate(samples):
        truth = sample.gt_instances.masks.masks
        right, bottom = (4 * np.array(masks.shape[-2:]) - truth.shape[1:])[::-1]
        truth = np.pad(truth, [(0, 0), (0, bottom), (0, right)])
        labels = sample.gt_instances.labels.numpy()
        p = np.exp(log_softmax(logits[i]))
        at = np.stack([sample_map(m, match_at) for m in masks[i]])
        wanted = np.stack([sample_map(m, match_at) for m in truth])
        cost = np.empty((len(at), len(wanted)))
        for q in range(len(at)):
            for n in range(len(wanted)):
                cost[q, n] = -2 * p[q, labels[n]] + 5 * bce(at[q], wanted[n]).mean()
                cost[q, n] += 5 * dice(at[q], wanted[n])
        rows, columns = linear_sum_assignment(cost)
        target = np.full(len(at), logits.shape[-1] - 1)
        target[rows] = labels[columns]
        weight = np.where(target == logits.shape[-1] - 1, 0.1, 1.0)
        weighted -= (weight * log_softmax(logits[i])[np.arange(len(at)), target]).sum()
        weights += weight.sum()
        for q, n in zip(rows, columns, strict=True):
            uncertain = np.abs(sample_map(masks[i, q], candidates)).argsort(kind="stable")
            chosen = np.concatenate([candidates[uncertain[:certain]], extra])
            value, answer = sample_map(masks[i, q], chosen), sample_map(truth[n], chosen)
            mask_loss += bce(value, answer).mean()
            dice_loss += dice(value, answer)
            count += 1
    return {
        "loss_cls": 2 * weighted / weights,
        "loss_mask": 5 * mask_loss / count,
        "loss_dice": 5 * dice_loss / count,
    }


@BOTH
def test_losses_equal_plain_formulas(captions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(captions)
    layers: list[MaskPrediction] = []
    model.head.register_forward_hook(lambda _, __, out: layers.extend(out))
    batch = batch_of(model)
    monkeypatch.setattr(torch, "rand", repeating_points())
    with torch.no_grad():
        losses = model(**batch, mode="loss")
    prefixes = ["d0.", "d1.", "d2.", ""]  # three decoder layers, and the initial queries
    kinds = ["loss_cls", "loss_mask", "loss_dice"] + ["loss_grounding"] * captions
    assert set(losses) == {prefix + kind for prefix in prefixes for kind in kinds}
    for sample in batch["data_samples"]:
        if captions:
            sample.gt_instances.labels.zero_()
    for prefix, layer in zip(prefixes, layers, strict=True):
        logits = (
            layer.objectness.double().numpy()
            if captions
            else class_logits(model, layer.embeddings.double().numpy())
        )
        wanted = reference_losses(logits, layer.masks.double().numpy(), batch["data_samples"], 300)
        for kind, value in wanted.items():
            assert losses[prefix + kind].item() == pytest.approx(value, rel=2e-4), prefix + kind
    assert losses["loss_cls"] != losses["d0.loss_cls"]


def test_grounding_gets_words_in_the_template_and_missing_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of(True)
    calls = []
    monkeypatch.setattr(
        model.grounding, "forward", lambda *inputs: (calls.append(inputs), inputs[0].sum())[1]
    )
    embedded = []
    encode = model.classifiers[0].text_encoder.forward
    monkeypatch.setattr(
        model.classifiers[0].text_encoder,
        "forward",
        lambda texts: (embedded.append(list(texts)), encode(texts))[1],
    )
    model(**make_batch(model, words=[WORDS, []]), mode="loss")
    prompts = [f"a photo of a {word}." for word in WORDS] + ["a photo of a ."] * 4
    assert embedded == [prompts]  # only once for all layers
    own = model.classifiers[0]
    wanted = own.text_proj(model.clip.encode_text(prompts)).view(2, 4, -1)
    assert len(calls) == 4
    for _, words, valid, scale in calls:
        torch.testing.assert_close(words, wanted)
        assert valid.tolist() == [[True] * 4, [False] * 4]
        assert scale == own.scale


# ------------------------------------------------------------------------------- gradients


@BOTH
@pytest.mark.parametrize("counts", [(3, 5), (0, 2), (0, 0)])
def test_gradients_reach_all_trained_parameters(captions: bool, counts: tuple[int, int]) -> None:
    """This also holds without segments or words, so DDP need not look for unused parameters."""
    model = model_of(captions)
    words = [WORDS, []] if counts == (3, 5) else [[], []]
    losses = model(**make_batch(model, counts, words if captions else None), mode="loss")
    assert all(loss.isfinite() for loss in losses.values())
    total(losses).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    if sum(counts):
        own = model.classifiers[0]
        assert own.text_proj.weight.grad.any() and model.captioner.context_gate.grad.any()


@BOTH
def test_checkpointing_does_not_change_gradients(
    captions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(captions)
    batch = batch_of(model)
    monkeypatch.setattr(torch, "rand", repeating_points())
    runs, seen = [], []
    block = model.backbone.unet.mid_block
    hook = block.register_forward_pre_hook(lambda *_: seen.append(1))
    for switch in (False, True):
        model.backbone.use_checkpoint = switch
        model.zero_grad()
        seen.clear()
        loss = total(model(**batch, mode="loss"))
        forward = len(seen)
        loss.backward()
        assert len(seen) == forward * (2 if switch else 1)  # runs again in the backward pass
        runs.append([loss, *(p.grad for p in model.parameters() if p.requires_grad)])
    hook.remove()
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@BOTH
def test_autocast_is_close(captions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(captions)
    batch = batch_of(model)
    monkeypatch.setattr(torch, "rand", repeating_points())
    plain = model(**batch, mode="loss")
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(**batch, mode="loss")
    assert all(loss.dtype == torch.float32 for loss in cast.values())  # computed in float32
    total(cast).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert total(cast).item() == pytest.approx(total(plain).item(), rel=0.1)
    assert total(cast) != total(plain)


# ------------------------------------------------------------------------- several processes


def gradients_of_rank(rank: int, world: int, folder: str) -> None:
    """Train on one image per process with DistributedDataParallel; rank 0 saves the results."""
    torch.set_num_threads(1)
    torch.rand = repeating_points()
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=120),
    )
    results = []
    for captions in (False, True):
        model = model_of(captions, tile_size=128)
        batch = joined_batch(model)
        samples = batch["data_samples"][rank : rank + 1]
        wrapped = DistributedDataParallel(model)
        losses = wrapped(batch["inputs"][rank : rank + 1], samples, mode="loss")
        total(losses).backward()
        means = {name: reduce_mean(loss.detach()).item() for name, loss in losses.items()}
        grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        results.append(dict(losses=means, grads=grads))
    # Three images on each process, and a non-contiguous gradient.
    masks, words, valid, scale = embeddings(rows=slice(3 * rank, 3 * rank + 3))
    loss = GroundingLoss()(masks.transpose(1, 2), words.transpose(1, 2), valid, scale)
    loss.backward()
    joined = [reduce_mean(loss.detach()), *(torch.cat(all_gather(x.grad)) for x in (masks, words))]
    results.append([*joined, reduce_mean(scale.grad)])
    if rank == 0:
        torch.save(results, f"{folder}/results.pth")
    dist.destroy_process_group()


def embeddings(rows: slice) -> tuple[Tensor, ...]:
    """Draw masks (C, Q), words (C, K), valid words and a scale for rows of six images."""
    generator = torch.Generator().manual_seed(2)
    masks, words = (torch.randn(6, 8, n, generator=generator)[rows] for n in (5, 4))
    valid = torch.tensor([1, 1, 0, 1, 0, 1]).bool()[rows, None].expand(-1, 4)
    scale = torch.tensor(4.0, requires_grad=True)
    return masks.requires_grad_(), words.requires_grad_(), valid, scale


def joined_batch(model: OpenVocabSegmentor) -> dict:
    """Draw images with 2 and 5 segments, so that averages over one process would be wrong.

    Each image is one tile. Smaller tiles have a map of a single pixel, which group norm reduces to
    rounding errors.
    """
    words = [WORDS, []] if model.grounding else None
    return make_batch(model, (2, 5), words, sizes=((128, 128), (128, 128)))


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> list:
    folder = tmp_path_factory.mktemp("two_processes")
    torch.multiprocessing.spawn(gradients_of_rank, (2, str(folder)), nprocs=2)
    return torch.load(folder / "results.pth", weights_only=True)


@BOTH
def test_two_processes_equal_one_with_the_whole_batch(
    captions: bool, of_two_processes: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = of_two_processes[captions]
    monkeypatch.setattr(torch, "rand", repeating_points())
    model = model_of(captions, tile_size=128)
    losses = model(**joined_batch(model), mode="loss")
    total(losses).backward()
    assert result["losses"].keys() == losses.keys()
    for name, loss in losses.items():
        assert result["losses"][name] == pytest.approx(loss.item(), rel=1e-4), name
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    largest = max(g.norm() for g in grads.values())
    for name, grad in grads.items():
        # Rounding may switch ReLU gates; a wrong average would change a third or more.
        assert (result["grads"][name] - grad).norm() <= 3e-2 * grad.norm() + 1e-6 * largest, name


def test_grounding_is_gathered_with_gradient(of_two_processes: list) -> None:
    """DDP averages over processes, which halves gradients that are summed over both."""
    masks, words, valid, scale = embeddings(rows=slice(0, 6))
    loss = GroundingLoss()(masks.transpose(1, 2), words.transpose(1, 2), valid, scale)
    loss.backward()
    wanted = [loss.detach(), 2 * masks.grad, 2 * words.grad, scale.grad]
    for ours, theirs in zip(of_two_processes[2], wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------------- initialization


def test_init_weights() -> None:
    torch.manual_seed(1)
    model = MODELS.build(segmentor_config())
    frozen = [part for part in model.modules() if isinstance(part, FrozenModule)]
    before = [p.clone() for part in frozen for p in part.parameters()]
    model.init_weights()
    after = [p for part in frozen for p in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    captioner, own = model.captioner, model.classifiers[0]
    assert not captioner.context_gate.any() and not captioner.time_gate.any()
    for table in (captioner.context, captioner.time):
        values = table.positional_embedding
        assert abs(values.std() - 0.02) < 0.15 * 0.02 and abs(values.mean()) < 0.005
        assert values.abs().max() <= 2  # truncated at 2, not at a multiple of the deviation
    torch.testing.assert_close(own.null_embedding, model.clip.encode_text([""]))
    assert own.scale.item() == pytest.approx(1 / 0.07)
    for block in model.neck.blocks:
        for conv, norm in (block.conv1, block.conv2, block.conv3):
            fan_out = conv.weight.shape[0] * conv.weight[0, 0].numel()
            assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
            assert (norm.weight == 1).all() and not norm.bias.any() and conv.bias is None
    for name, p in model.head.transformer_decoder.named_parameters():
        if p.ndim == 2:  # Xavier
            expected = (2 / sum(p.shape)) ** 0.5
            assert p.std().item() == pytest.approx(expected, rel=0.1), name
    for name, p in model.head.mask_embedding.named_parameters():
        if p.ndim == 2:  # PyTorch's default: uniform up to 1 / sqrt(inputs)
            bound = p.shape[1] ** -0.5
            assert p.abs().max() <= bound and abs(p.std() - bound / 3**0.5) < 0.05 * bound, name


@BOTH
def test_training_starts_at_the_empty_prompt(captions: bool) -> None:
    model = MODELS.build(segmentor_config())
    tiles = torch.rand(2, 3, 64, 64)
    condition = model.captioner(tiles)
    assert torch.equal(condition.context, model.backbone.empty_context.expand(2, -1, -1))
    assert not condition.time.any()


@pytest.mark.parametrize(("config", "count"), [("label", 28_067_009), ("caption", 28_066_755)])
def test_checkpoints_contain_trained_parameters_only(config: str, count: int) -> None:
    state = meta_model(f"odise/odise_coco_{config}.py").state_dict()
    assert sum(value.numel() for value in state.values()) == count
    size = sum(value.numel() * value.element_size() for value in state.values())
    assert 105e6 < size < 115e6


def test_configs_have_the_published_loss_weights() -> None:
    head = load_config("odise/odise_coco_label.py").model.head
    costs = {cost.type: cost.weight for cost in head.train_cfg.assigner.match_costs}
    assert list(costs.values()) == [2.0, 5.0, 5.0]
    weights = (head.loss_cls.loss_weight, head.loss_mask.loss_weight, head.loss_dice.loss_weight)
    assert weights == (2.0, 5.0, 5.0) and head.loss_cls.void_weight == 0.1
    cfg = head.train_cfg
    points = (cfg.num_points, cfg.oversample_ratio, cfg.importance_sample_ratio)
    assert points == (12544, 3.0, 0.75)
    grounding = load_config("odise/odise_coco_caption.py").model.grounding
    assert (grounding.loss_weight, grounding.softmax) == (1.0, "masks")


# ----------------------------------------------------------------------------------- errors


@pytest.fixture(scope="module")
def label_model() -> OpenVocabSegmentor:
    return model_of(False)


@pytest.fixture(scope="module")
def caption_model() -> OpenVocabSegmentor:
    return model_of(True)


@pytest.mark.parametrize("missing", ["masks", "labels", "gt_instances"])
def test_no_ground_truth(missing: str, label_model: OpenVocabSegmentor) -> None:
    batch = batch_of(label_model)
    sample = batch["data_samples"][1]
    if missing == "gt_instances":
        del sample.gt_instances
    else:
        sample.gt_instances.pop(missing)
    with pytest.raises(DatasetError, match="image_1.jpg has no gt_instances.*PanopticMapToMasks"):
        label_model(**batch, mode="loss")


@pytest.mark.parametrize("label", [-1, 4, 255])
def test_labels_outside_the_vocabulary(label: int, label_model: OpenVocabSegmentor) -> None:
    batch = batch_of(label_model)
    batch["data_samples"][0].gt_instances.labels[2] = label
    with pytest.raises(DatasetError, match=r"image_0.jpg has labels .*has 4 classes"):
        label_model(**batch, mode="loss")


def test_caption_supervision_ignores_labels(caption_model: OpenVocabSegmentor) -> None:
    batch = batch_of(caption_model)
    batch["data_samples"][0].gt_instances.labels[2] = 255
    with torch.no_grad():
        assert total(caption_model(**batch, mode="loss")).isfinite()


def test_masks_of_another_size_raise(label_model: OpenVocabSegmentor) -> None:
    batch = batch_of(label_model)
    batch["data_samples"][0].gt_instances = make_sample(3, (200, 128)).gt_instances
    with pytest.raises(DatasetError, match="image_0.jpg.*200 x 128.*padded to 128 x 128"):
        label_model(**batch, mode="loss")


def test_masks_may_be_tensors(label_model: OpenVocabSegmentor, monkeypatch) -> None:
    monkeypatch.setattr(torch, "rand", repeating_points())
    results = []
    for convert in (False, True):
        batch = batch_of(label_model)
        for sample in batch["data_samples"]:
            instances = sample.gt_instances
            if convert:
                masks = instances.pop("masks")
                instances.masks = masks.to_tensor(torch.bool, "cpu")
        with torch.no_grad():
            results.append(total(label_model(**batch, mode="loss")))
    assert torch.equal(*results)


def test_captions_without_words(caption_model: OpenVocabSegmentor) -> None:
    with pytest.raises(DatasetError, match="image_0.jpg has no words.*phrases_file"):
        caption_model(**make_batch(caption_model), mode="loss")


def test_captions_with_different_numbers_of_words(caption_model: OpenVocabSegmentor) -> None:
    batch = make_batch(caption_model, words=[WORDS, ["dog"]])
    with pytest.raises(DatasetError, match="1 and 4 words; draw the same number"):
        caption_model(**batch, mode="loss")


def test_grounding_in_a_label_model_raises() -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match="grounding is for caption superv"):
        MODELS.build(segmentor_config(grounding=dict(type="GroundingLoss")))


def test_captions_without_grounding() -> None:
    model = model_of(True, grounding=None)
    with pytest.raises(TrainingError, match="add grounding=dict"):
        model(**make_batch(model), mode="loss")


class Undecided(Classifier):
    """Implements only inference."""

    def forward(
        self, prediction: MaskPrediction, images: Sequence[Tensor], vocabulary: Vocabulary
    ) -> ClassPrediction:
        masks = prediction.masks
        return ClassPrediction(
            masks.new_zeros(*masks.shape[:2], len(vocabulary)), masks[..., 0, 0] * 0
        )


@BOTH
def test_untrainable_first_classifier_raises(captions: bool) -> None:
    model = model_of(captions)
    model.classifiers[0] = Undecided()
    batch = make_batch(model, words=[WORDS, WORDS] if captions else None)
    message = (
        "first classifier, Undecided, cannot be trained.*put an OpenVocabClassifier or another"
    )
    with pytest.raises(ConfigError, match=message):
        model(**batch, mode="loss")
    samples = [
        DetDataSample(metainfo=dict(s.metainfo, ori_shape=(50, 60))) for s in batch["data_samples"]
    ]
    results = model.eval()(batch["inputs"], samples, mode="predict")
    assert all(result.pred_sem_seg.sem_seg.shape == (1, 50, 60) for result in results)


def test_no_train_cfg() -> None:
    config = segmentor_config()
    config.head.train_cfg = None
    model = make_model(False, head=config.head)
    with pytest.raises(TrainingError, match="the head has no train_cfg"):
        model(**make_batch(model), mode="loss")


def test_class_loss_for_a_fixed_number_of_classes_raises() -> None:
    config = segmentor_config()
    config.head.loss_cls = dict(type="mmdet.CrossEntropyLoss", class_weight=[1.0] * 133 + [0.1])
    with torch.device("meta"), pytest.raises(ConfigError, match="needs OpenVocabCrossEntropyLoss"):
        MODELS.build(config)


def test_modes(label_model: OpenVocabSegmentor) -> None:
    known = "mode='predict', mode='loss' and mode='tensor'"
    with pytest.raises(ValueError, match=f"mode='tensors'.*{known}"):
        label_model(torch.zeros(1, 3, 64, 64), [], mode="tensors")
