"""A segmentor without a network, whose results are known beforehand.

It has the interface of ``OpenVocabSegmentor``, so that the code around the model can be tested
quickly.
"""

from __future__ import annotations

import os

import torch
from mmdet.structures import DetDataSample
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData

from odise_mm.registry import MODELS
from odise_mm.vocabulary import Vocabulary

# The first use of the log opens its stream. Open it here, before a test captures and closes it.
MMLogger.get_current_instance()


@MODELS.register_module()
class FakeSegmentor(BaseModel):
    """Predicts class 0 in the left half and the last class in the right half of an image.

    An image of one pixel's width has one segment.
    """

    signal: int | None = None
    """Signal sent to the own process after ``signal_at`` batches."""
    signal_at = 0

    def __init__(
        self,
        names: str | None = "cat; dog",
        fail: str | None = None,
        fail_from: int = 0,
        test_cfg: dict | None = None,
    ) -> None:
        super().__init__()
        self.vocabulary = None if names is None else Vocabulary.parse(names)
        self.test_cfg = dict(test_cfg or {})
        self.precision, self.compiled = "", False
        self.fail, self.fail_from = fail, fail_from
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.batches: list[list[tuple[int, ...]]] = []
        self.seen: list[torch.Tensor] = []

    def set_precision(self, precision: str) -> FakeSegmentor:
        self.precision = precision
        return self

    def compile_frozen(self) -> FakeSegmentor:
        self.compiled = True
        return self

    def forward(self, inputs, data_samples=None, mode="predict"):
        raise NotImplementedError

    def test_step(
        self,
        data: dict,
        vocabulary: Vocabulary | None = None,
        test_cfg: dict | None = None,
    ) -> list[DetDataSample]:
        if self.signal is not None and len(self.batches) == self.signal_at:
            os.kill(os.getpid(), self.signal)
        if self.fail and len(self.batches) >= self.fail_from:
            if self.fail == "cuda":
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            if self.fail == "cpu":
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
            if self.fail == "huge":  # only for images with a white corner
                if any(int(image[0, 0, 0]) == 255 for image in data["inputs"]):
                    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
            elif self.fail == "overflow":  # only for images with a white corner
                if any(int(image[0, 0, 0]) == 255 for image in data["inputs"]):
                    raise FloatingPointError("not finite")
            else:
                raise RuntimeError(self.fail)
        self.batches.append([tuple(image.shape) for image in data["inputs"]])
        self.seen += data["inputs"]
        settings = {**self.test_cfg, **(test_cfg or {})}
        return [self._predict(s, vocabulary, settings) for s in data["data_samples"]]

    def _predict(
        self,
        sample: DetDataSample,
        vocabulary: Vocabulary | None = None,
        test_cfg: dict | None = None,
    ) -> DetDataSample:
        vocabulary = vocabulary or self.vocabulary
        test_cfg = self.test_cfg if test_cfg is None else test_cfg
        height, width = sample.ori_shape
        last = len(vocabulary) - 1
        ids = torch.ones(1, height, width, dtype=torch.int32)
        ids[..., (width + 1) // 2 :] = 2
        infos = []
        for id_, label in ((1, 0), (2, last)):
            area = int((ids == id_).sum())
            if area:
                infos.append(
                    dict(
                        id=id_,
                        category_id=label,
                        category_name=vocabulary.names[label],
                        isthing=vocabulary.is_thing[label],
                        score=0.75,
                        area=area,
                    )
                )
        sample.pred_panoptic_seg = PixelData(
            sem_seg=ids, metainfo=dict(segments_info=infos, label_names=vocabulary.names)
        )
        if test_cfg.get("semantic", True):
            sample.pred_sem_seg = PixelData(sem_seg=torch.where(ids == 1, 0, last))
        if test_cfg.get("instance", True):
            sample.pred_instances = InstanceData(
                masks=ids == 1,
                labels=torch.zeros(1, dtype=torch.int64),
                scores=torch.full((1,), 0.5, dtype=torch.bfloat16),
                bboxes=torch.tensor([[0.0, 0.0, width, height]]),
            )
        return sample


CONFIG = """
custom_imports = dict(imports=["tests.support.fake_segmentor"])
default_scope = "odise_mm"
random_weights = True
model = dict(type="FakeSegmentor")
test_pipeline = [
    dict(type="LoadImage"),
    dict(type="ResizeKeepRatio", scale=(160, 64)),
    dict(
        type="mmdet.PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
"""
"""Config file of this model; images get a short edge of 64 and a long edge of at most 160."""
