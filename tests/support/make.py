"""Random test samples: ground truth, its files, and results in the model's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_utils

from odise_mm.annotations.panoptic_io import write_panoptic_png
from odise_mm.vocabulary import Vocabulary


def vocabulary(num_classes: int) -> Vocabulary:
    """Build classes c0, c1, ..., of which every other one is a thing."""
    things = [i % 2 == 0 for i in range(num_classes)]
    names = tuple((f"name {i}",) for i in range(num_classes))
    sources = tuple(f"c{i}" for i in range(num_classes))
    return Vocabulary(names, tuple(things), "mini", sources)


def blocks(rng: np.random.Generator, shape: tuple[int, int], segments: int) -> np.ndarray:
    """Draw a map (H, W) of 0 to ``segments``, in which every number is a Voronoi cell."""
    height, width = shape
    points = rng.random((segments + 1, 2)) * shape
    rows, columns = np.mgrid[:height, :width]
    distance = (rows - points[:, 0, None, None]) ** 2 + (columns - points[:, 1, None, None]) ** 2
    return distance.argmin(axis=0)


def panoptic(
    rng: np.random.Generator,
    shape: tuple[int, int],
    classes: Vocabulary,
    segments: int,
    crowd: float = 0.2,
) -> tuple[np.ndarray, list[dict]]:
    """Draw ground truth with void: a map of ids up to 2^24, and segments_info with crowds."""
    local = blocks(rng, shape, segments)
    ids = np.append(0, rng.choice(2**24 - 1, segments, replace=False) + 1)
    ids[1] = 2**24 - 1
    infos = []
    for index in np.unique(local[local > 0]):
        label = int(rng.integers(len(classes)))
        infos.append(
            dict(
                id=int(ids[index]),
                label=label,
                is_thing=classes.is_thing[label],
                is_crowd=bool(classes.is_thing[label] and rng.random() < crowd),
            )
        )
    return ids[local], infos


def disturbed(
    rng: np.random.Generator, ids: np.ndarray, infos: list[dict], classes: Vocabulary
) -> dict[str, Any]:
    """Draw a panoptic result similar to the ground truth.

    The segments are shifted; some get another class, some are dropped, and void is filled.
    """
    moved = np.roll(ids, rng.integers(-2, 3, 2), (0, 1))
    out, segments = np.zeros(ids.shape, np.int32), []
    filled = [*((info["id"], info["label"]) for info in infos), (0, 0)]
    for number, (old, label) in enumerate(filled, start=1):
        mask = moved == old
        if not mask.any() or rng.random() < 0.15:
            continue
        if rng.random() < 0.2:
            label = int(rng.integers(len(classes)))
        out[mask] = number * 60_000
        segments.append(dict(id=number * 60_000, category_id=label, score=0.5))
    return dict(sem_seg=torch.from_numpy(out)[None], segments_info=segments)


def instances(
    rng: np.random.Generator,
    masks: list[np.ndarray],
    labels: list[int],
    shape: tuple[int, int],
    num_classes: int,
    extra: int = 3,
) -> dict[str, torch.Tensor]:
    """Draw an instance result: shifted copies of masks, wrong labels and false positives."""
    found, classes = [], []
    for mask, label in zip(masks, labels, strict=True):
        for _ in range(int(rng.integers(0, 3))):
            found.append(np.roll(mask, rng.integers(-2, 3, 2), (0, 1)))
            classes.append(label if rng.random() < 0.8 else int(rng.integers(num_classes)))
    for _ in range(extra):
        found.append(blocks(rng, shape, 6) == 1)
        classes.append(int(rng.integers(num_classes)))
    # Few distinct scores, so that there are ties.
    scores = rng.integers(1, 20, len(found)) / 20
    return dict(
        masks=torch.from_numpy(np.array(found, bool).reshape(-1, *shape)),
        labels=torch.tensor(classes, dtype=torch.int64),
        scores=torch.from_numpy(scores.astype(np.float32)),
    )


def sample(
    folder: Path,
    img_id: int,
    rng: np.random.Generator,
    classes: Vocabulary,
    shape: tuple[int, int] = (40, 50),
    segments: int = 9,
) -> dict[str, Any]:
    """Draw a test sample with all three results, and write its ground truth to ``folder``."""
    ids, infos = panoptic(rng, shape, classes, segments)
    path = folder / f"{img_id}.png"
    write_panoptic_png(path, ids)
    things = [info for info in infos if info["is_thing"]]
    masks = [ids == info["id"] for info in things]
    semantic = rng.integers(len(classes), size=shape)
    for info in infos:
        if rng.random() < 0.8:
            semantic[ids == info["id"]] = info["label"]
    return dict(
        img_id=img_id,
        img_path=str(folder / f"{img_id}.jpg"),
        seg_map_path=str(path),
        segments_info=infos,
        pred_panoptic_seg=disturbed(rng, ids, infos, classes),
        pred_sem_seg=dict(sem_seg=torch.from_numpy(semantic)[None]),
        pred_instances=instances(
            rng, masks, [info["label"] for info in things], shape, len(classes)
        ),
    )


def read_ids(item: dict[str, Any]) -> np.ndarray:
    """Read the ground truth's map with Pillow."""
    with Image.open(item["seg_map_path"]) as image:
        return np.asarray(image).astype(np.int64) @ (1, 256, 65536)


def instance_file(path: Path, items: list[dict[str, Any]], classes: Vocabulary) -> dict[str, Any]:
    """Write the samples' things as COCO instance annotations, in all of COCO's mask formats.

    Category ids have gaps and are not in the order of the classes. Stuff has no category.
    """
    things = [i for i, thing in enumerate(classes.is_thing) if thing]
    id_of = {label: 900 - 7 * label for label in things}
    annotations = []
    for item in items:
        ids = read_ids(item)
        for info in item["segments_info"]:
            if not info["is_thing"]:
                continue
            rle = mask_utils.encode(np.asfortranarray(ids == info["id"], dtype=np.uint8))
            segmentation: Any = dict(size=rle["size"], counts=rle["counts"].decode())
            if len(annotations) % 2:
                flat = (ids == info["id"]).T.reshape(-1)
                edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
                counts = np.diff(np.concatenate([[0], edges])).tolist()
                segmentation = dict(size=rle["size"], counts=counts)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=item["img_id"],
                    category_id=id_of[info["label"]],
                    segmentation=segmentation,
                    area=int(mask_utils.area(rle)),
                    bbox=mask_utils.toBbox(rle).tolist(),
                    iscrowd=int(info["is_crowd"]),
                )
            )
    shapes = [item["pred_instances"]["masks"].shape[1:] for item in items]
    content = dict(
        images=[
            dict(id=item["img_id"], height=height, width=width, file_name=f"{item['img_id']}.jpg")
            for item, (height, width) in zip(items, shapes, strict=True)
        ],
        annotations=annotations,
        categories=[dict(id=id_of[i], name=classes.source_names[i]) for i in reversed(things)],
    )
    path.write_text(json.dumps(content))
    return content


def coco_results(items: list[dict[str, Any]], classes: Vocabulary) -> list[dict]:
    """Return the samples' instances in COCO's result format; stuff gets an unknown category id."""
    return [
        dict(
            image_id=item["img_id"],
            category_id=900 - 7 * int(label) if classes.is_thing[label] else 5,
            score=float(score),
            segmentation=mask_utils.encode(np.asfortranarray(mask.numpy().astype(np.uint8))),
        )
        for item in items
        for mask, label, score in zip(
            *(item["pred_instances"][key] for key in ("masks", "labels", "scores")), strict=True
        )
    ]
