"""Captioners that write a sentence, which the diffusion model's text encoder embeds.

These are the explicit captions of ODISE's captioner ablation (arXiv 2303.04803). A new captioner of
this kind only implements :meth:`TextCaptioner.describe`. Nothing here is trained.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from string import Formatter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odise_mm.config.building import build_part
from odise_mm.errors import DatasetError
from odise_mm.models.backbones.diffusion.condition import Condition
from odise_mm.models.clip.prompts import fill_template
from odise_mm.models.clip.text_encoder import TextEncoder
from odise_mm.models.necks.captioners.implicit import check_provided
from odise_mm.registry import MODELS
from odise_mm.utils.precision import full_precision
from odise_mm.utils.settings import check_text
from odise_mm.vocabulary import Vocabulary

PLACES = Path(__file__).parent / "places.txt"
PromptEncoder = Callable[[Sequence[str]], Tensor]


class TextCaptioner(nn.Module):
    """Base class of captioners that describe each tile with a sentence.

    The first call loads the text encoder that the diffusion model was trained with. For Stable
    Diffusion v1, it has 123 M parameters, 0.5 GB in float32. Tiles are described separately, so the
    tiles of one image may have different sentences.

    Args:
        prompt_encoder: function of texts that returns (len(texts), tokens, context width), provided
            by a diffusion backbone.

    Raises:
        ValueError: ``prompt_encoder`` is None.
    """

    def __init__(self, prompt_encoder: PromptEncoder | None = None) -> None:
        super().__init__()
        check_provided(self, prompt_encoder=prompt_encoder)
        self.prompt_encoder = prompt_encoder

    def describe(self, tiles: Tensor, captions: Sequence[str | None]) -> list[str]:
        """Return a sentence for every tile.

        Args:
            tiles: (N, 3, S, S) in [0, 1]. On the meta device, where tensors have no values, the
                content of the sentences does not matter.
            captions: caption of the image of every tile, None if unknown.
        """
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, tiles: Tensor, captions: Sequence[str | None] | None = None) -> Condition:
        """Compute the condition of tiles (N, 3, S, S) in [0, 1], once for equal tiles."""
        captions = [None] * len(tiles) if captions is None else list(captions)
        first, place = _distinct(tiles, captions)
        sentences = self.describe(tiles[first], [captions[i] for i in first])
        return Condition(self.prompt_encoder(sentences)[place])


@MODELS.register_module()
class CaptionCaptioner(TextCaptioner):
    """Uses the image's own caption, an upper bound for captioners.

    All tiles of an image get the same caption. In training, it is the caption whose words are drawn
    (:class:`~odise_mm.datasets.transforms.DrawWords`), and in testing the first one; see
    ``captions_file`` of :class:`~odise_mm.datasets.PanopticDataset`. An image without a caption is
    an error, because an empty prompt in its place would go unnoticed.

    Args:
        prompt_encoder: see :class:`TextCaptioner`.

    Raises:
        ValueError: ``prompt_encoder`` is None.
    """

    def describe(self, tiles: Tensor, captions: Sequence[str | None]) -> list[str]:
        """Return the captions.

        Raises:
            DatasetError: an image has no caption.
        """
        if tiles.is_meta:
            return [""] * len(tiles)
        if any(caption is None for caption in captions):
            raise DatasetError(
                "CaptionCaptioner needs a caption for every image, and an image has none: set "
                "captions_file in the dataset and add 'caption' to the meta_keys of PackDetInputs, "
                "or use a captioner that describes the image itself"
            )
        return list(captions)


@MODELS.register_module()
class HeuristicCaptioner(TextCaptioner):
    """Inserts the places and objects that CLIP ranks highest into a template sentence.

    This follows Socratic Models (Zeng et al., arXiv 2204.00598): the names are ranked by the cosine
    similarity of the tile and "Photo of a ...", and the 3 best places and 10 best objects are used.
    Socratic Models use the names of Places365 and Tencent ML-Images, and a language model writes
    the caption. ODISE does not publish its lists and template. Here, the 501 places are a list that
    comes with this package, and the objects are the 1,203 classes of LVIS.

    The text encoder that all parts share embeds each name only once. Every tile takes one pass of
    CLIP's image tower.

    Args:
        text_encoder: a :class:`~odise_mm.models.clip.text_encoder.TextEncoder` or its config. Its
            CLIP also embeds the tiles.
        prompt_encoder: see :class:`TextCaptioner`.
        places: a list of names, the name of a built-in vocabulary, or a vocabulary file. Only first
            synonyms are used.
        objects: see ``places``.
        num_places: number of places in the sentence, best first.
        num_objects: number of objects in the sentence, best first.
        template: the sentence, with the fields ``{places}`` and ``{objects}``.

    Raises:
        ValueError: an encoder is missing, a list is empty or has too few names, or the template
            does not have exactly these two fields.
        TypeError: an argument has the wrong type.
        VocabularyError: a vocabulary is unknown, or its file cannot be read.
    """

    def __init__(
        self,
        text_encoder: TextEncoder | dict | None = None,
        prompt_encoder: PromptEncoder | None = None,
        places: str | Sequence[str] = str(PLACES),
        objects: str | Sequence[str] = "lvis",
        num_places: int = 3,
        num_objects: int = 10,
        template: str = "a photo taken at a {places}, with {objects}",
    ) -> None:
        super().__init__(prompt_encoder)
        if text_encoder is None:
            raise ValueError(
                "HeuristicCaptioner needs a CLIP, which the model does not have; set `clip` in the "
                "model's config"
            )
        self.text_encoder = build_part(text_encoder, MODELS)
        self.places = _names("places", places, num_places)
        self.objects = _names("objects", objects, num_objects)
        self.num_places, self.num_objects = num_places, num_objects
        check_text("template", template)
        try:
            fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        except ValueError as err:
            raise ValueError(f"template={template!r} of HeuristicCaptioner: {err}") from err
        if fields != {"places", "objects"}:
            raise ValueError(
                f"template={template!r} of HeuristicCaptioner must have the fields {{places}} and "
                "{objects}, and no others"
            )
        self.template = template

    def describe(self, tiles: Tensor, captions: Sequence[str | None]) -> list[str]:
        """Return the template, filled in with the best names; ``captions`` is ignored."""
        clip = self.text_encoder.clip
        embeddings = F.normalize(clip.encode_image(tiles), dim=-1)
        places = self._best(embeddings, self.places, self.num_places)
        objects = self._best(embeddings, self.objects, self.num_objects)
        return [
            self.template.format(places=_listed(where, " or "), objects=", ".join(what))
            for where, what in zip(places, objects, strict=True)
        ]

    def _best(self, embeddings: Tensor, names: Sequence[str], count: int) -> list[list[str]]:
        """Return the ``count`` names most similar to each of the embeddings (N, C), best first."""
        text = self.text_encoder(fill_template("Photo of a {}.", names)).to(embeddings)
        with full_precision(embeddings):
            best = (embeddings @ F.normalize(text, dim=-1).T).topk(count).indices
        if best.is_meta:
            return [list(names[:count])] * len(best)
        return [[names[i] for i in row] for row in best.tolist()]


def _names(argument: str, given: str | Sequence[str], count: int) -> list[str]:
    if not isinstance(given, Sequence):
        raise TypeError(f"{argument}={given!r} must be a list of names, a vocabulary or a file")
    if type(count) is not int:
        raise TypeError(f"num_{argument}={count!r} must be a whole number")
    names = list(Vocabulary.load(given).names if isinstance(given, str) else given)
    if not 1 <= count <= len(names):
        raise ValueError(
            f"{argument} has {len(names)} names and num_{argument}={count}: HeuristicCaptioner "
            f"needs a number from 1 to {len(names)}"
        )
    return names


def _listed(names: Sequence[str], last: str) -> str:
    """Join names as in "a, b or c"."""
    return last.join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _distinct(tiles: Tensor, captions: Sequence[str | None]) -> tuple[list[int], list[int]]:
    """Find equal pairs of tile and caption.

    Returns:
        Indices of the distinct pairs, and for every tile its position among them.
    """
    if tiles.is_meta:
        return list(range(len(tiles))), list(range(len(tiles)))
    sums = tiles.flatten(1).sum(dim=1).tolist()  # cheap; different for most different tiles
    first: list[int] = []
    place: list[int] = []
    for i, key in enumerate(zip(sums, captions, strict=True)):
        same = [
            k
            for k, j in enumerate(first)
            if (sums[j], captions[j]) == key and torch.equal(tiles[i], tiles[j])
        ]
        place.append(same[0] if same else len(first))
        first.extend([] if same else [i])
    return first, place
