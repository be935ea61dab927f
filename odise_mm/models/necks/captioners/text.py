"""Captioners that write a sentence, which the diffusion model's own text encoder reads.

ODISE (arXiv 2303.04803), the explicit captions of its captioner ablation. A new one says in
:meth:`TextCaptioner.describe` what the sentences are; nothing here is trained.
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
    """Sentences about tiles, as the diffusion model's conditioning.

    The text encoder that the diffusion model was trained with is loaded at the first call: 123 M
    parameters, 0.5 GB in float32, for Stable Diffusion v1. Every tile is described by itself, so
    the sentences of an image that is cut into tiles differ from tile to tile.

    Args:
        prompt_encoder: texts to (len(texts), tokens, context width); a diffusion backbone lends it.

    Raises:
        ValueError: there is no ``prompt_encoder``.
    """

    def __init__(self, prompt_encoder: PromptEncoder | None = None) -> None:
        super().__init__()
        check_provided(self, prompt_encoder=prompt_encoder)
        self.prompt_encoder = prompt_encoder

    def describe(self, tiles: Tensor, captions: Sequence[str | None]) -> list[str]:
        """One sentence per tile.

        Args:
            tiles: (N, 3, S, S) in [0, 1]. On the meta device, where values don't exist, the
                sentences are not looked at.
            captions: what people wrote about the image that each was cut from, where known.
        """
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, tiles: Tensor, captions: Sequence[str | None] | None = None) -> Condition:
        """Conditioning of a batch of tiles, (N, 3, S, S) in [0, 1]; equal ones are done once."""
        captions = [None] * len(tiles) if captions is None else list(captions)
        first, place = _distinct(tiles, captions)
        sentences = self.describe(tiles[first], [captions[i] for i in first])
        return Condition(self.prompt_encoder(sentences)[place])


@MODELS.register_module()
class CaptionCaptioner(TextCaptioner):
    """The image's own caption: an upper bound for captioners, where captions exist.

    All tiles of an image get the same one. In training it is the caption whose words are drawn
    (:class:`~odise_mm.datasets.transforms.DrawWords`), in testing the first; see ``captions_file``
    of :class:`~odise_mm.datasets.PanopticDataset`. An image without a caption is an error: an
    empty prompt in its place would go unnoticed in the results.

    Raises:
        ValueError: there is no ``prompt_encoder``.
    """

    def describe(self, tiles: Tensor, captions: Sequence[str | None]) -> list[str]:
        """The captions.

        Raises:
            DatasetError: an image has none.
        """
        if tiles.is_meta:
            return [""] * len(tiles)
        if any(caption is None for caption in captions):
            raise DatasetError(
                "CaptionCaptioner uses what people wrote about an image, and an image came "
                "without: give the dataset a captions_file and PackDetInputs the meta key "
                "'caption', or choose a captioner that looks at the image"
            )
        return list(captions)


@MODELS.register_module()
class HeuristicCaptioner(TextCaptioner):
    """CLIP ranks names of places and objects, and a template makes a sentence of the first.

    After Socratic Models (Zeng et al., arXiv 2204.00598): cosine similarity of the tile with
    "Photo of a ...", the 3 best places and the 10 best objects. Socratic Models' lists are those of
    Places365 and Tencent ML-Images, and a language model writes the caption; which lists and which
    template ODISE used is not published. Here places are a list of 501 that comes with this
    package, objects the 1,203 of LVIS.

    Names are embedded once, by the text encoder that all parts share. CLIP sees what its
    ``encode_image`` makes of a tile; a captioner costs one pass of its image tower per tile.

    Args:
        text_encoder: a :class:`~odise_mm.models.clip.text_encoder.TextEncoder` or its config; its
            CLIP looks at the tiles.
        prompt_encoder: see :class:`TextCaptioner`.
        places, objects: a list of names, a built-in vocabulary's name, or a file of names (first
            synonyms count).
        num_places, num_objects: how many of them are in the sentence, best first.
        template: the sentence, with ``{places}`` and ``{objects}`` in it.

    Raises:
        ValueError: a part is missing, a list is empty or shorter than what is to be taken from it,
            a template lacks one of the two or has others.
        TypeError: something else than names and numbers.
        VocabularyError: a file of names that cannot be read.
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
                "HeuristicCaptioner ranks names by CLIP, and the model has none: give it a `clip`"
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
                f"template={template!r}: HeuristicCaptioner fills in {{places}} and {{objects}}; "
                "both must be there, and no other field"
            )
        self.template = template

    def describe(self, tiles: Tensor, captions: Sequence[str | None]) -> list[str]:
        """The template with the best names; captions are not looked at."""
        clip = self.text_encoder.clip
        embeddings = F.normalize(clip.encode_image(tiles), dim=-1)
        places = self._best(embeddings, self.places, self.num_places)
        objects = self._best(embeddings, self.objects, self.num_objects)
        return [
            self.template.format(places=_listed(where, " or "), objects=", ".join(what))
            for where, what in zip(places, objects, strict=True)
        ]

    def _best(self, embeddings: Tensor, names: Sequence[str], count: int) -> list[list[str]]:
        """The ``count`` names most similar to each of N embeddings (N, C), the best first."""
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
            "takes at least one, and no more than there are"
        )
    return names


def _listed(names: Sequence[str], last: str) -> str:
    """ "a, b or c"."""
    return last.join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _distinct(tiles: Tensor, captions: Sequence[str | None]) -> tuple[list[int], list[int]]:
    """Which tiles, with their captions, are the first of their kind; and each one's among those."""
    if tiles.is_meta:
        return list(range(len(tiles))), list(range(len(tiles)))
    sums = tiles.flatten(1).sum(dim=1).tolist()  # most that differ are told apart by this alone
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
