"""A tiny COCO panoptic dataset in the layout of the unpacked archives."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from odise_mm.annotations.panoptic_io import write_panoptic_png
from odise_mm.vocabulary import Vocabulary

# The order differs from that of the categories in the file, whose ids have gaps as in COCO.
VOCABULARY = Vocabulary(
    (("sky", "heaven"), ("cat", "kitten"), ("grass",), ("dog",)),
    (False, True, False, True),
    name="small",
    source_names=("sky-other-merged", "cat", "grass-merged", "dog"),
)
CATEGORIES = [
    dict(id=17, name="cat", isthing=1),
    dict(id=18, name="dog", isthing=1),
    dict(id=187, name="sky-other-merged", isthing=0),
    dict(id=193, name="grass-merged", isthing=0),
]
SIZES = {7: (24, 40), 3: (40, 30), 25: (33, 33)}  # image id -> height, width


@dataclass
class SmallCoco:
    """Paths of a tiny dataset, and the content of its PNG files.

    Attributes:
        root: folder of the dataset.
        maps: map of segment ids (H, W) by image id.
        split: "train" or "val".
    """

    root: Path
    maps: dict[int, np.ndarray]
    split: str

    @property
    def json(self) -> Path:
        return self.root / f"annotations/panoptic_{self.split}2017.json"

    def read(self) -> dict[str, Any]:
        return json.loads(self.json.read_text())

    def write(self, content: Any) -> None:
        self.json.write_text(json.dumps(content))

    def png(self, image_id: int) -> Path:
        return self.json.with_suffix("") / f"{image_id:012}.png"

    def image(self, image_id: int) -> Path:
        return self.root / f"{self.split}2017/{image_id:012}.jpg"

    def config(self, **changes: Any) -> dict:
        """Return the config of a dataset that reads it."""
        return {
            "type": "PanopticDataset",
            "vocabulary": VOCABULARY,
            "data_root": str(self.root),
            "ann_file": f"annotations/panoptic_{self.split}2017.json",
            "data_prefix": dict(
                img=f"{self.split}2017/", seg=f"annotations/panoptic_{self.split}2017/"
            ),
            **changes,
        }


def write_small_coco(root: Path, split: str = "train") -> SmallCoco:
    """Write images 7, 3 and 25: sky, grass, two cats and a dog; in 25, the dog is a crowd."""
    maps, images, annotations = {}, [], []
    rng = np.random.default_rng(5)
    made = SmallCoco(root, maps, split)
    for folder in (made.image(0).parent, made.png(0).parent):
        folder.mkdir(parents=True, exist_ok=True)
    for image_id, (height, width) in SIZES.items():
        base = 1000 * image_id + 70_000  # needs all three bytes of a pixel
        ids = np.zeros((height, width), dtype=np.int32)
        ids[: height // 2], ids[height // 2 : height - 2] = base + 1, base + 2
        ids[4:14, 3:13], ids[12:20, 15:24], ids[16:23, 2:9] = base + 3, base + 4, base + 5
        categories = {1: 187, 2: 193, 3: 17, 4: 17, 5: 18}
        maps[image_id] = ids
        write_panoptic_png(made.png(image_id), ids)
        pixels = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(made.image(image_id), quality=95)
        images.append(
            dict(id=image_id, file_name=f"{image_id:012}.jpg", height=height, width=width)
        )
        infos = [
            dict(
                id=base + n,
                category_id=category,
                iscrowd=int(image_id == 25 and n == 5),
                area=int((ids == base + n).sum()),
                bbox=[0, 0, 1, 1],
            )
            for n, category in categories.items()
        ]
        annotations.append(
            dict(image_id=image_id, file_name=f"{image_id:012}.png", segments_info=infos)
        )
    # As in COCO, images and annotations are not in the same order.
    made.write(dict(images=images, annotations=annotations[::-1], categories=CATEGORIES))
    return made
