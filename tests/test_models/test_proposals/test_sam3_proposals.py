"""SAM 3 with concept prompts: masks, scores and tokens equal transformers', synonyms are joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from open_clip import SimpleTokenizer
from PIL import Image

from odise_mm.errors import ConfigError
from odise_mm.models.proposals.sam3_proposals import Sam3Proposals, _without_repeated
from odise_mm.models.proposals.sam_models import image_processor
from odise_mm.vocabulary import Vocabulary
from tests.support.tiny_sam import SAM, SAM3

NAMES = Vocabulary.parse("cat, kitten; red delivery van", "Cobblestone")


def picture(height: int = 60, width: int = 100) -> np.ndarray:
    small = np.random.default_rng(3).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def processor() -> Any:
    """transformers' processor with a tokenizer that is built from CLIP's word pieces."""
    pieces = SimpleTokenizer()
    merges = sorted(pieces.bpe_ranks, key=pieces.bpe_ranks.get)
    vocab = {
        {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}.get(
            piece, piece
        ): i
        for piece, i in pieces.encoder.items()
    }
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=[tuple(m) for m in merges])
    size = {"height": 112, "width": 112}
    return transformers.Sam3Processor(image_processor("Sam3", size), tokenizer)


@pytest.fixture(scope="module")
def source() -> Sam3Proposals:
    return Sam3Proposals(arch=SAM3, threshold=0.25, same_object=1.0, prompts_per_batch=3)


def reference(source: Sam3Proposals, processor: Any, name: str) -> tuple[Any, torch.Tensor]:
    inputs = processor(images=Image.fromarray(picture()), text=name, return_tensors="pt")
    inputs.pop("original_sizes")
    with torch.no_grad():
        outputs = source.model(**inputs)
    return outputs, (outputs.pred_logits.sigmoid() * outputs.presence_logits.sigmoid())[0]


def test_masks_and_scores_equal_those_of_transformers(
    source: Sam3Proposals, processor: Any
) -> None:
    found = source.propose(tensor(picture()), None, NAMES)
    masks, scores, classes = [], [], []
    for label, names in enumerate(NAMES.synonyms):
        for name in names:
            outputs, score = reference(source, processor, name)
            (theirs,) = processor.post_process_instance_segmentation(outputs, threshold=0.25)
            kept = score > 0.25
            torch.testing.assert_close(score[kept], theirs["scores"])
            masks.append(outputs.pred_masks[0, kept])
            scores.append(score[kept])
            classes += [label] * int(kept.sum())
    assert 5 < len(classes) < 40 and len(set(classes)) == 3
    wanted = torch.cat(masks)
    own, _, _ = source._masks_of_names(tensor(picture()), NAMES.flat[0])
    torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-4)
    resized = F.interpolate(wanted[None], (60, 100), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found.masks, resized, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.scores, torch.cat(scores), atol=1e-5, rtol=1e-4)
    probabilities = found.classes.logits.softmax(-1)
    assert torch.equal(probabilities, torch.eye(3)[classes])
    assert torch.equal(found.classes.p_void, 1 - found.scores)


def test_the_image_is_encoded_once_and_the_names_once_for_all_images() -> None:
    source = Sam3Proposals(arch=SAM3, threshold=0.0, prompts_per_batch=3)
    images, texts = [], []
    source.model.vision_encoder.register_forward_hook(lambda *_: images.append(1))
    source.model.text_encoder.register_forward_hook(lambda *_: texts.append(1))
    for count in (1, 2):
        source.propose(tensor(picture()), None, NAMES)
        assert (len(images), len(texts)) == (count, 2)  # four names in batches of three
    source.propose(tensor(picture()), None, Vocabulary.parse("dog"))
    assert (len(images), len(texts)) == (3, 3)


def test_batches_of_names_do_not_change_the_result(source: Sam3Proposals) -> None:
    single = Sam3Proposals(arch=SAM3, threshold=0.25, same_object=1.0, prompts_per_batch=1)
    one, two = (each.propose(tensor(picture()), None, NAMES) for each in (source, single))
    torch.testing.assert_close(one.masks, two.masks)
    torch.testing.assert_close(one.scores, two.scores)


@pytest.mark.parametrize(
    "text", ["cat", "a red  delivery-van", "Café, 2nd floor", "person's hat", "don't walk sign"]
)
def test_tokens_equal_those_of_transformers(
    source: Sam3Proposals, processor: Any, text: str
) -> None:
    theirs = processor(text=text, return_tensors="pt")
    (_, mask) = source._embed((text,))
    assert torch.equal(mask, theirs["attention_mask"])
    tokens = source.tokenizer([text])
    assert torch.equal(tokens[mask.bool()], theirs["input_ids"][mask.bool()])


def test_a_better_mask_of_another_name_of_the_class_is_kept() -> None:
    left, right = torch.full((4, 8), -1.0), torch.full((4, 8), -1.0)
    left[:, :4], right[:, 4:] = 1, 1
    masks = torch.stack([left, left, right, left, left])
    scores = torch.tensor([0.6, 0.9, 0.7, 0.8, 0.5])
    names = torch.tensor([0, 1, 1, 2, 0])
    # Names 0 and 1 belong to class 0, name 2 to class 1. Of one name, SAM 3 keeps what it found.
    classes = torch.tensor([0, 0, 0, 1, 0])
    assert _without_repeated(masks, scores, names, classes, 0.7).tolist() == [1, 2, 3]
    same_name = torch.tensor([1, 1, 1, 2, 1])
    assert _without_repeated(masks, scores, same_name, classes, 0.7).tolist() == [0, 1, 2, 3, 4]
    assert _without_repeated(masks[:0], scores[:0], names[:0], classes[:0], 0.7).tolist() == []


def test_the_score_of_an_object_is_the_maximum_over_the_names(source: Sam3Proposals) -> None:
    """Two names with the same text find the same masks; one with another text finds others."""
    joined = Sam3Proposals(arch=SAM3, threshold=0.25, same_object=0.9)
    once = joined.propose(tensor(picture()), None, Vocabulary((("cat",),), (True,)))
    twice = joined.propose(tensor(picture()), None, Vocabulary((("cat", "CAT"),), (True,)))
    assert len(once.masks) and twice.scores.max() == once.scores.max()
    assert len(twice.masks) <= len(once.masks)
    both = joined.propose(tensor(picture()), None, Vocabulary((("cat", "kitten"),), (True,)))
    each = [
        joined.propose(tensor(picture()), None, Vocabulary(((name,),), (True,))).scores.max()
        for name in ("cat", "kitten")
    ]
    torch.testing.assert_close(both.scores.max(), max(each))


def test_no_mask_above_the_threshold() -> None:
    strict = Sam3Proposals(arch=SAM3, threshold=1.0)
    (item,) = strict.segment(torch.rand(1, 3, 40, 64), None, NAMES)
    assert item.prediction.masks.shape == (1, 0, 40, 64)
    assert item.class_predictions[0].logits.shape == (1, 0, 3)


def test_weights_in_a_folder_and_16_bits(source: Sam3Proposals, tmp_path: Path) -> None:
    source.model.save_pretrained(tmp_path)
    loaded = Sam3Proposals(weights=str(tmp_path), threshold=0.25, same_object=1.0)
    one, two = (each.propose(tensor(picture()), None, NAMES) for each in (source, loaded))
    torch.testing.assert_close(one.masks, two.masks)
    loaded.cast(torch.bfloat16)
    found = loaded.propose(tensor(picture()), None, NAMES)
    assert found.masks.dtype == found.scores.dtype == torch.float32


def test_published_size() -> None:
    with torch.device("meta"):
        source = Sam3Proposals(weights="facebook/sam3")
    # The paper's 848 M include the tracker.
    assert 8.3e8 < sum(p.numel() for p in source.parameters()) < 8.48e8


def test_bad_settings() -> None:
    with pytest.raises(
        ConfigError, match="model_type 'sam' in arch is not one of sam3, sam3_video"
    ):
        Sam3Proposals(arch=SAM)
    with pytest.raises(ConfigError, match="threshold=-1"):
        Sam3Proposals(arch=SAM3, threshold=-1)
