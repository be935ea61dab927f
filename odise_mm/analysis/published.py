"""Parameters and FLOPs of the published ODISE implementation, for comparison.

They were counted in the published code (Stable Diffusion v1, CLIP ViT-L/14-336). FLOPs were counted
with torch's counter (2 per multiply-add, attention included) for one image, 12 classes and 18
synonyms that were already embedded.

Our counts are equal wherever both implementations compute the same. They differ in three parts. The
captioner's CLIP (0.24 %): the published code projects all 577 tokens, ours only the class token,
which explains 0.906 of 0.908 GFLOP. The transformer decoder's masks: ours resizes the mask features
to the size of each layer's attention instead of the full masks. The mask embedding: ours computes
it after the last layer only, not after all ten.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedParameters:
    """Parameters of one variant, by the part names of :mod:`odise_mm.analysis.parts`.

    CLIP counts once.

    Attributes:
        trained: Trained parameters by part.
        frozen: Frozen parameters by part.
    """

    trained: dict[str, int]
    frozen: dict[str, int]

    @property
    def trained_total(self) -> int:
        """Total of the trained parameters."""
        return sum(self.trained.values())

    @property
    def frozen_total(self) -> int:
        """Total of the frozen parameters."""
        return sum(self.frozen.values())


_TRAINED = {
    "captioner": 59_136 + 1_280 + 649_728 + 985_600,
    "feature projection": 5_873_664,
    "pixel decoder": 395_520 + 4_393_920 + 65_792 + 131_584 + 590_336,
    "transformer decoder": 14_458_624,
    # The published head contains the logit scale; here it counts for the names.
    "mask embedding": 264_193 - 1,
}
_FROZEN = {
    "UNet": 859_520_964,
    "VAE encoder": 34_163_592 + 72,
    "VAE decoder": 49_490_179 + 20,
    "diffusion text encoder": 123_060_480,
    "CLIP image tower": 304_293_888,
    "CLIP text tower": 123_650_305,
}
PARAMETERS = {
    "label": PublishedParameters(_TRAINED | {"names": 197_632 + 1}, _FROZEN),
    # The linear layer for "object" or "no object" has 514 parameters.
    "caption": PublishedParameters(
        _TRAINED | {"transformer decoder": 14_458_624 + 514, "names": 196_864 + 1}, _FROZEN
    ),
}
# Paper, section 4.1: millions of trained and frozen parameters.
PAPER_TRAINED_MILLIONS = 28.1
PAPER_FROZEN_MILLIONS = 1493.8
PAPER_CLIP_IMAGE_SIZE = 224  # presumably CLIP's image size in the paper's frozen count
PAPER_MEMORY_GB = 11.9  # peak memory at 1024 x 1024 on a V100

# Vocabulary that the FLOPs were counted with.
COUNTED_CLASSES = 12
COUNTED_SYNONYMS = 18


@dataclass(frozen=True)
class PublishedFlops:
    """FLOPs of one part.

    Attributes:
        needed: FLOPs that the part's output depends on.
        unused: FLOPs for values that are computed and not used.
    """

    needed: int
    unused: int = 0

    @property
    def total(self) -> int:
        """All FLOPs of the published code."""
        return self.needed + self.unused


FLOPS: dict[int, dict[str, PublishedFlops]] = {
    512: {
        "captioner's CLIP": PublishedFlops(382_827_506_304),
        "diffusion text encoder": PublishedFlops(0, 13_298_503_680),
        "VAE encoder": PublishedFlops(1_116_658_466_816),
        "UNet": PublishedFlops(740_119_838_720, 63_059_230_720 + 94_371_840),
        "VAE decoder": PublishedFlops(622_921_383_936, 1_891_597_549_568),
        "feature projection": PublishedFlops(31_297_896_448),
        "pixel decoder": PublishedFlops(74_214_014_976),
        "transformer decoder: layers": PublishedFlops(8_566_751_232),
        "transformer decoder: masks": PublishedFlops(8_781_824_000),
        "mask embedding": PublishedFlops(17_301_504_000),
        "MaskCLIP": PublishedFlops(454_807_992_576),
        "post-processing": PublishedFlops(629_145_600),
        "captioner, names and ensemble": PublishedFlops(11_589_632),
    },
    1024: {
        "captioner's CLIP": PublishedFlops(1_531_310_025_216),
        "diffusion text encoder": PublishedFlops(0, 53_194_014_720),
        "VAE encoder": PublishedFlops(4_466_633_867_264),
        "UNet": PublishedFlops(2_960_479_354_880, 252_236_922_880 + 377_487_360),
        "VAE decoder": PublishedFlops(2_491_685_535_744, 7_566_390_198_272),
        "feature projection": PublishedFlops(125_191_585_792),
        "pixel decoder": PublishedFlops(296_856_059_904),
        "transformer decoder: layers": PublishedFlops(26_204_848_128),
        "transformer decoder: masks": PublishedFlops(33_947_648_000),
        "mask embedding": PublishedFlops(67_633_152_000),
        "MaskCLIP": PublishedFlops(454_807_992_576),
        "post-processing": PublishedFlops(2_516_582_400),
        "captioner, names and ensemble": PublishedFlops(21_026_816),
    },
}


def is_published_architecture(model_cfg: dict) -> bool:
    """Return whether a config has the published model's frozen parts, so counts are comparable.

    Args:
        model_cfg: The ``model`` section of a config.
    """
    clip, backbone = model_cfg.get("clip") or {}, model_cfg.get("backbone") or {}
    captioner = model_cfg.get("captioner") or {}
    return (
        backbone.get("type") == "DiffusionBackbone"
        and backbone.get("arch", "sd_v1") == "sd_v1"
        and len(backbone.get("steps", (0,))) == 1
        and captioner.get("type") == "ImplicitCaptioner"
        and clip.get("model") in ("ViT-L-14-336-quickgelu", "ViT-L-14-336")
    )
