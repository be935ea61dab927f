"""The inferencer: open-vocabulary segmentation of images with given class names."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from rich.console import Console
from rich.text import Text

from odise_mm.apis.output import ResultWriter, describe_settings
from odise_mm.apis.pretrained import load_pretrained, save_pretrained
from odise_mm.apis.progress import LONG_LIST, SharedProgress
from odise_mm.apis.running import ImageRunner, Locks, Request
from odise_mm.apis.sources import Source, expand, is_single
from odise_mm.apis.teaching import Example, Taught, teach
from odise_mm.apis.windows import Windows
from odise_mm.config.building import BUILDING, build_model, make_test_pipeline
from odise_mm.config.changing import change_config, set_frozen_weights
from odise_mm.config.checking import check_complete, is_complete, runs_on_random_weights
from odise_mm.config.finding import load_config
from odise_mm.config.walking import name_of, named_weights
from odise_mm.errors import CheckpointError, ConfigError, DeviceMemoryError, VocabularyError
from odise_mm.models.frozen import same_random_weights
from odise_mm.structures import SegmentationResult
from odise_mm.utils.device import pick_device
from odise_mm.utils.display import printable, some
from odise_mm.utils.image import (
    MAX_PIXELS,
    ImageError,
    ImageSource,
    check_max_pixels,
    read_image,
)
from odise_mm.utils.memory import forget_frames, image_guard, memory_guard
from odise_mm.utils.old_keys import renamed_arguments, spread_settings
from odise_mm.utils.outputs import InputFiles
from odise_mm.utils.precision import check_precision
from odise_mm.utils.settings import check_choice, check_whole
from odise_mm.vocabulary import Vocabulary

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from odise_mm.apis.video import SegmentedFrame, VideoSummary
    from odise_mm.models.classifiers.region_memory import RegionMemory
    from odise_mm.models.segmentors.regions import EmbeddedRegions
    from odise_mm.structures import ResultSettings

PUBLISHED = "published"
"""Value of ``weights`` for the weights that the config's metafile names."""

Texts = str | Vocabulary | Sequence[str | Vocabulary]


class OpenVocabInferencer:
    """Inferencer that segments images with class names of your choice.

    Example::

        inferencer = OpenVocabInferencer("odise_coco_label", "odise_label_coco_50e.pth")
        (result,) = inferencer("street.jpg", texts="black pickup truck, pickup truck; person",
                               stuff_texts="blue sky, sky; road")
        for s in result.segments:
            print(s.name, s.score, s.area)

    An inferencer can be used by several threads: each call and each iterator of :meth:`stream` has
    its own class names, settings and files. Images are read, drawn and written concurrently, but
    the model processes one batch at a time and therefore needs the memory of one call.

    Args:
        config: path of a config file, its name under ``configs/``, or a loaded config.
        weights: our checkpoint (.pth or .safetensors, trained parameters) or a published
            checkpoint. "published": the checkpoint that the config's metafile names, from torch's
            cache or, after a license notice in the log, downloaded from its publisher. None: the
            config's ``load_from`` if it is set, otherwise like "published". A config with
            ``random_weights = True`` needs no weights: the model is then random, and
            ``random_weights`` is True for the inferencer and for every result. Nor does one with
            ``needs_checkpoint = False``, whose model has no trained parameters.
        device: e.g. "cuda:0" or "cpu". None: CUDA if available, otherwise the CPU; the choice is
            logged. If a given device does not exist, an error is raised.
        precision: "fp32", "bf16" or "fp16", see the model's ``set_precision``.
        diffusion_weights: replaces the config's ``model.backbone.weights``: a hub id, a diffusers
            folder, or a single original file.
        clip_weights: replaces the config's ``model.clip.weights``: an open_clip tag or a file.
        compile_frozen: whether to compile the frozen parts with ``torch.compile``; the first call
            then takes minutes.
        cfg_options: other changes of the config, by dotted keys as in mmengine's ``--cfg-options``.
        max_pixels: maximum number of pixels of an image. Larger images are rejected, files before
            they are decoded. None: no limit.
        memory: named regions that the model compares masks with, a
            :class:`~odise_mm.models.RegionMemory` or its file, see :attr:`memory`.

    Raises:
        ConfigError: the config does not exist, is invalid, or has an unknown part or argument; or
            the precision is unknown.
        DeviceError: the device does not exist, or is a CPU and the precision is fp16.
        CheckpointError: the weights are missing, damaged, do not match the model, or cannot be
            downloaded; or the config needs weights, and none are given or published.
    """

    def __init__(
        self,
        config: str | os.PathLike | Config,
        weights: str | os.PathLike | None = None,
        device: str | torch.device | None = None,
        precision: str = "fp32",
        *,
        diffusion_weights: str | os.PathLike | None = None,
        clip_weights: str | os.PathLike | None = None,
        compile_frozen: bool = False,
        cfg_options: dict[str, Any] | None = None,
        max_pixels: int | None = MAX_PIXELS,
        memory: str | os.PathLike | RegionMemory | None = None,
    ) -> None:
        from odise_mm.models.classifiers.region_memory import RegionMemory

        if memory is not None and not isinstance(memory, RegionMemory):
            memory = RegionMemory.load(memory)  # fails before the model is built
        self.precision = precision
        self.max_pixels = check_max_pixels(max_pixels)
        self.device = pick_device(device)
        check_precision(precision, self.device)
        chosen = "" if device is not None else " (selected automatically)"
        print_log(f"Running on {self.device}{chosen}, precision {precision}", logger="current")

        with BUILDING:
            self._build(config, weights, diffusion_weights, clip_weights, cfg_options)
            import odise_mm.visualization  # noqa: F401  # concurrent imports may see half of it
        with memory_guard(self.device, precision):
            self.model.set_precision(precision).to(self.device).eval()
        if compile_frozen:
            self.model.compile_frozen()
        if memory is not None:
            self.model.memory = memory
        self.console = Console(stderr=True)
        self._progress = SharedProgress(self.console)
        self._locks = Locks()

    def _build(
        self,
        config: str | os.PathLike | Config,
        weights: str | os.PathLike | None,
        diffusion_weights: str | os.PathLike | None,
        clip_weights: str | os.PathLike | None,
        cfg_options: dict[str, Any] | None,
    ) -> None:
        self.cfg = load_config(config)
        change_config(self.cfg, cfg_options or {})
        for part, source in (("backbone", diffusion_weights), ("clip", clip_weights)):
            if source is not None:
                set_frozen_weights(self.cfg, part, os.fspath(source))
        weights = _choose_weights(self.cfg, weights)
        if weights is not None:
            from odise_mm.checkpoints.published import load_weights, use_contained_clip

            use_contained_clip(self.cfg.model, os.fspath(weights))
        self._weights = [weights, *named_weights(self.cfg.get("model"))]
        complete = weights is None and is_complete(self.cfg)
        self.random_weights = weights is None and not complete
        self.pipeline = make_test_pipeline(self.cfg, already_read=True)
        with same_random_weights():  # makes random weights reproducible
            self.model = build_model(self.cfg)
        if weights is not None:
            load_weights(self.model, os.fspath(weights))
            return
        if complete:
            check_complete(self.cfg, self.model)
            return
        from odise_mm.models.random_weights import RANDOM_WEIGHTS_NOTICE, fill_with_random_weights

        fill_with_random_weights(self.model, ("head", "classifiers", "clip"))
        print_log(RANDOM_WEIGHTS_NOTICE, logger="current", level=logging.WARNING)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        device: str | torch.device | None = None,
        precision: str = "fp32",
        *,
        custom_imports: Sequence[str] = (),
        revision: str | None = None,
        **options: Any,
    ) -> OpenVocabInferencer:
        """Load an inferencer from a folder that :meth:`save_pretrained` wrote.

        Nothing in the folder can choose the code that runs. The frozen parts are loaded from the
        sources in its config, unless ``diffusion_weights`` and ``clip_weights`` replace them.

        Args:
            source: the folder, or its id on the Hugging Face Hub, ``owner/name``.
            device, precision: see the class.
            custom_imports: installed modules with parts of the model that you trust.
            revision: branch, tag or commit on the hub. None: the main branch. Only the full hash of
                a commit (40 digits) names content that its owner cannot change.
            options: other arguments of the class.

        Raises:
            ConfigError: the config is damaged, or uses parts of other packages.
            VocabularyError: the file of class names is damaged.
            CheckpointError: the folder or a file is missing or damaged, or the download failed.
        """
        config, weights = load_pretrained(source, custom_imports, revision)
        return cls(config, weights, device, precision, **options)

    def save_pretrained(self, folder: str | os.PathLike) -> Path:
        """Write trained parameters, config and names to a folder for :meth:`from_pretrained`.

        Writes ``model.safetensors``, ``config.json`` and ``vocabulary.json``. Frozen weights are
        not included. Use ``huggingface_hub.upload_folder`` to upload the folder to the hub.

        Args:
            folder: target folder; created if it is missing. Existing files of these names are
                replaced.

        Returns:
            The folder.

        Raises:
            CheckpointError: the model has random weights, or the weights cannot be written.
            ConfigError: the config cannot be written as JSON.
            OutputError: the folder cannot be written to.
        """
        if self.random_weights:
            raise CheckpointError(
                f"{name_of(self.cfg)}: the model has random weights, so there is nothing to save"
            )
        return save_pretrained(self.model, self.cfg, folder)

    @property
    def weights(self) -> list[str | os.PathLike[str] | None]:
        """Files, folders and hub names of the weights: trained parameters first, then others."""
        return list(self._weights)

    @property
    def default_vocabulary(self) -> Vocabulary | None:
        """The model's vocabulary, which is used for calls without class names."""
        return self.model.vocabulary

    @property
    def memory(self) -> RegionMemory:
        """The named regions that masks are compared with, see :meth:`teach`; empty at first.

        It can be replaced by another one: ``inferencer.memory = RegionMemory.load(file)``. Do not
        replace it while other threads use the inferencer; changing its content is safe.
        """
        from odise_mm.models.classifiers.region_memory import RegionMemory

        if self.model.memory is None:
            with self._locks.model:
                if self.model.memory is None:
                    self.model.memory = RegionMemory()
        return self.model.memory

    @memory.setter
    def memory(self, memory: RegionMemory) -> None:
        with self._locks.model:
            self.model.memory = memory

    def teach(
        self,
        image: ImageSource,
        name: str,
        *,
        mask: np.ndarray | None = None,
        box: Sequence[float] | None = None,
        point: Sequence[float] | None = None,
        is_thing: bool = True,
        pictures: bool = True,
    ) -> Taught:
        """Remember a region of an image as an example of a class.

        Later calls compare their masks with it. The name counts in calls that have it among their
        class names, and in calls without class names. Example::

            inferencer.teach("shelf.jpg", "oat crackers", box=(310, 40, 420, 260))
            (result,) = inferencer("other.jpg", texts="oat crackers; bottle")

        Args:
            image: one image.
            name: class name, of any words.
            mask: the region, (H, W) bool, of the image's size.
            box: left, top, right, bottom in pixels. The region is the model's mask with the most
                similar box, or the whole box if none is similar.
            point: x and y in pixels. The region is the model's segment there or, if there is none,
                its most certain mask.
            is_thing: whether the class is a thing; used in calls without class names.
            pictures: whether the memory keeps a picture of the region, at most 64 x 64 pixels, to
                show it as evidence.

        Returns:
            The region, its mask, and how well the model's own masks cover it.

        Raises:
            ImageError: the image cannot be read.
            ConfigError: not exactly one of mask, box and point is given, it is outside the image,
                or the model has no mask at the point.
            CheckpointError: the memory was made by another model.
        """
        (taught,) = self.teach_all(image, [Example(name, mask, box, point, is_thing)], pictures)
        return taught

    def teach_all(
        self, image: ImageSource, examples: Sequence[Example], pictures: bool = True
    ) -> list[Taught]:
        """Remember several regions of an image, like :meth:`teach`, in one run of the model.

        Args:
            image: one image.
            examples: the regions.
            pictures: see :meth:`teach`.
        """
        (source,) = expand([image])
        if source.error is not None:
            raise source.error
        pixels = read_image(source.value, name=source.name, max_pixels=self.max_pixels)
        memory = self.memory
        if not examples:
            return []

        def segment() -> SegmentationResult:
            (result,) = self(
                pixels,
                progress=False,
                panoptic=True,
                semantic=False,
                instance=False,
                keep_queries=True,
            )
            return result

        def embed(masks: np.ndarray) -> EmbeddedRegions:
            return self._runner().embed(source, pixels, masks)

        name = source.path or source.name
        return teach(memory, name, pixels, examples, segment, embed, pictures)

    def forget(self, name: str) -> int:
        """Remove all examples of a class from the memory, and return their number.

        Raises:
            VocabularyError: there are none.
        """
        return self.memory.remove(name)

    @renamed_arguments(return_pictures="return_vis")
    def __call__(
        self,
        images: ImageSource | Iterable[ImageSource],
        texts: Texts | None = None,
        stuff_texts: str | Sequence[str] | None = None,
        vocabulary: Texts | None = None,
        *,
        batch_size: int = 1,
        out_dir: str | os.PathLike | None = None,
        draw: bool = True,
        legend: bool | None = False,
        fill: str = "class",
        return_vis: bool = False,
        keep_maps: bool = True,
        window: int | None = None,
        overlap: int | None = None,
        channel_order: str = "bgr",
        progress: bool = True,
        resume: bool = False,
        overwrite: bool = False,
        **settings: Unpack[ResultSettings],
    ) -> list[SegmentationResult]:
        """Segment images and return all results; see :meth:`stream` for the arguments.

        Args:
            keep_maps: whether results keep maps, masks and drawn images. With False these are
                dropped as soon as they are written, so that results of many images fit in memory.
                This includes what ``keep_queries`` keeps.

        Returns:
            One result per image, in order. In a list, folder or pattern, an image that cannot be
            read, needs too much memory or has masks that are not finite gives a result with
            ``error`` set. The other images are still processed, and a summary of the failed images
            is printed.

        Raises:
            ImageError: a single image cannot be read.
            DeviceMemoryError: a single image needs too much memory; the message names settings
                that reduce it.
            FloatingPointError: the masks of a single image are not finite.
        """
        single = is_single(images)
        results = []
        for result in self.stream(
            images,
            texts,
            stuff_texts,
            vocabulary,
            batch_size=batch_size,
            out_dir=out_dir,
            draw=draw,
            legend=legend,
            fill=fill,
            return_vis=return_vis,
            window=window,
            overlap=overlap,
            channel_order=channel_order,
            progress=progress,
            resume=resume,
            overwrite=overwrite,
            **settings,
        ):
            if single and result.error is not None:
                raise result.error
            results.append(result if keep_maps else result.drop_maps())
        return results

    @renamed_arguments(return_pictures="return_vis")
    def stream(
        self,
        images: ImageSource | Iterable[ImageSource],
        texts: Texts | None = None,
        stuff_texts: str | Sequence[str] | None = None,
        vocabulary: Texts | None = None,
        *,
        batch_size: int = 1,
        out_dir: str | os.PathLike | None = None,
        draw: bool = True,
        legend: bool | None = False,
        fill: str = "class",
        return_vis: bool = False,
        window: int | None = None,
        overlap: int | None = None,
        channel_order: str = "bgr",
        progress: bool = True,
        resume: bool = False,
        overwrite: bool = False,
        **settings: Unpack[ResultSettings],
    ) -> Iterator[SegmentationResult]:
        """Segment images batch by batch; only one batch is in memory.

        Args:
            images: a path, a folder, a glob pattern, a file's bytes or a binary file object, an
                array (H, W[, C]), a PIL image, or an iterable of these. A generator is consumed as
                needed; if it raises, the exception follows the results of the previous images.
            texts: names of thing classes, with ``;`` between classes and ``,`` between synonyms; or
                names of vocabularies ("coco", "ade20k", ...), or a list of both.
            stuff_texts: names of stuff classes, in the same format.
            vocabulary: a :class:`Vocabulary`, the name or file of a vocabulary, several of these
                separated by commas, or a list. Its classes follow those of ``texts`` and
                ``stuff_texts``. Without any of the three, ``model.vocabulary`` of the config is
                used.
            batch_size: number of images per batch; they may differ in size.
            out_dir: folder for ``vis/*.jpg``, ``panoptic/*.png`` and ``panoptic.json``, see
                :class:`odise_mm.apis.output.ResultWriter`. Results of an earlier run in the folder
                are replaced.
            draw: whether to write drawn images to ``out_dir``.
            legend: whether drawn images have a legend; None: if a segment has no room for its name.
                Without legends, drawn images have the size of the images.
            fill: color of the segments in drawn images: "class" for one color per class, or "mean"
                for the mean color of each segment's pixels.
            return_vis: whether results contain drawn images (``visualization``).
            window: images with a longer side are cut into square windows with this many pixels
                per side, which are segmented one by one and joined, see
                :func:`odise_mm.apis.windows.segment_windows`. Results of such images have no
                semantic map and no instances. None: images are segmented as a whole.
            overlap: how far windows overlap at least, in pixels. None: a quarter of ``window``.
            channel_order: channel order of arrays: "bgr" (as in OpenMMLab and OpenCV) or "rgb".
            progress: whether to show a progress bar for four or more images.
            resume: whether to continue an interrupted run into ``out_dir`` with the same images,
                class names and settings. Results of images that it finished have no semantic map
                and no instances.
            overwrite: whether to replace files in ``out_dir`` that this package did not write
                (never inputs), and to discard an interrupted run.
            settings: settings of the results, such as ``score_threshold=0.3``, see
                :class:`~odise_mm.structures.ResultSettings`. Settings that are left out are those
                of the config. With ``keep_queries=True``, results can be made again with other
                settings, and tell the probabilities of all names; see
                :class:`~odise_mm.structures.Queries`.

        Yields:
            One result per image, in order; ``error`` is set if the image failed.

        Raises:
            VocabularyError: the class names are invalid (empty, duplicate, unknown vocabulary).
            TypeError: there is no such argument or setting.
            ConfigError: the value of a setting is not allowed.
            OutputError: ``out_dir`` cannot be used: an output would replace an input or a file
                that this package did not write, another program is writing there, or ``resume`` is
                set and the interrupted run has other settings.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, not {batch_size!r}")
        if channel_order not in ("bgr", "rgb"):
            raise ValueError(f'channel_order must be "bgr" or "rgb", not {channel_order!r}')
        from odise_mm.visualization.panoptic import FILLS

        check_choice("fill", fill, FILLS)
        names = self.make_vocabulary(texts, stuff_texts, vocabulary)
        windows = _windows(window, overlap)
        chosen = self._settings(settings, windows)
        request = Request(names, chosen, channel_order, windows, progress)
        sources = expand(images)
        writer = None
        if out_dir is not None:
            writer = ResultWriter(
                out_dir,
                names,
                random_weights=self.random_weights,
                sources=sources if isinstance(sources, Sized) else None,
                inputs=self._inputs(texts, vocabulary),
                settings=describe_settings(
                    self.cfg,
                    self._weights,
                    names,
                    self.precision,
                    draw,
                    legend,
                    fill,
                    {
                        **self.model.test_cfg,
                        **chosen,
                        **({} if windows is None else asdict(windows)),
                        **({"memory": self.memory.digest} if _is_taught(self.model) else {}),
                    },
                ),
                draw=draw,
                resume=resume,
                overwrite=overwrite,
            )
        want_vis = return_vis or (draw and out_dir is not None)
        total = len(sources) if isinstance(sources, Sized) else None
        show = progress and (total is None or total >= LONG_LIST)
        begin = None if writer is None else writer.begin
        runs = self._runner().run(sources, request, batch_size, begin)

        # An inner generator, so that the call itself raises for invalid arguments.
        def results() -> Iterator[SegmentationResult]:
            failed: list[SegmentationResult] = []
            done = 0
            try:
                with writer or nullcontext(), self._progress.bar("images", total, show) as advance:
                    for result, image in runs:
                        drawing = None
                        restored = image is None and not return_vis
                        if want_vis and result.panoptic is not None and not restored:
                            drawing = self._try_to_draw(image, result, legend=legend, fill=fill)
                        if writer is not None:
                            self._try_to_write(writer, result, drawing if draw else None)
                        result.visualization = drawing if return_vis and result.ok else None
                        done += 1
                        if not result.ok:
                            failed.append(result)
                        advance()
                        yield result
            finally:
                if failed and done > 1:
                    self._report(failed, done)

        return results()

    def segment_sources(
        self,
        sources: Iterable[Source],
        vocabulary: Vocabulary,
        *,
        batch_size: int = 1,
        window: int | None = None,
        overlap: int | None = None,
        workers: int = 4,
        **settings: Unpack[ResultSettings],
    ) -> Iterator[SegmentationResult]:
        """Segment images while threads read the next ones, for :mod:`odise_mm.labeling`.

        Args:
            sources: the images.
            vocabulary: the class names.
            batch_size, window, overlap, settings: see :meth:`stream`.
            workers: number of threads that read and prepare images, up to two images per thread
                ahead of the model. 0: images are read when the model needs them.

        Yields:
            One result per image, in order; ``error`` is set if the image failed.

        Raises:
            TypeError: there is no such setting.
            ConfigError: the value of a setting is not allowed.
        """
        chosen = self._settings(settings, windows := _windows(window, overlap))
        request = Request(vocabulary, chosen, windows=windows, progress=False)
        runs = self._runner().run(sources, request, batch_size, workers=workers)
        return (result for result, _ in runs)

    def _runner(self) -> ImageRunner:
        """Return a runner with the present attributes, which may have been changed."""
        return ImageRunner(
            self.model,
            self.pipeline,
            self._locks,
            self.device,
            self.precision,
            self.max_pixels,
            self.random_weights,
            self._progress,
        )

    def _settings(self, settings: Mapping[str, Any], windows: Windows | None) -> Mapping[str, Any]:
        """Check the settings of a call."""
        from odise_mm.models.postprocess import check_settings

        chosen = check_settings(spread_settings(settings), TypeError)
        if windows is not None and chosen.get("keep_queries"):
            raise ConfigError("keep_queries=True keeps the masks of whole images: set no window")
        return chosen

    def stream_video(
        self,
        source: str | os.PathLike | int,
        texts: Texts | None = None,
        stuff_texts: str | Sequence[str] | None = None,
        vocabulary: Texts | None = None,
        *,
        out: str | os.PathLike | None = None,
        every: int = 1,
        start: float = 0.0,
        end: float | None = None,
        max_side: int | None = None,
        rate: float = 25.0,
        min_iou: float = 0.3,
        max_gap: int = 12,
        smoothing: float = 0.9,
        batch_size: int = 1,
        progress: bool = True,
        **settings: Unpack[ResultSettings],
    ) -> Iterator[SegmentedFrame]:
        """Segment a video frame by frame; objects keep their ``track_id`` and their name.

        Memory does not grow with the length of the video. Example::

            for frame in inferencer.stream_video("street.mp4", texts="car; person"):
                print(frame.time, [(s.name, s.track_id) for s in frame.result.segments])

        Args:
            source: a video file, a folder of images, the index of a camera (or ``camera:N``) or the
                address of a stream, see :func:`odise_mm.video.frames.open_frames`.
            texts, stuff_texts, vocabulary: the class names, see :meth:`stream`.
            out: the drawn video to write, .mp4, .mkv or .mov; None: none. It has the size and the
                time stamps of the used frames, and no sound. A JSON file of the same name has all
                segments, see :class:`odise_mm.video.writing.VideoWriter`. Existing files of these
                names are replaced when the iterator ends or is closed.
            every, start, end, max_side: the frames to use and their size, see
                :class:`odise_mm.video.frames.Selection`.
            rate: frames per second of a folder of images.
            min_iou, max_gap, smoothing: how segments are linked and named, see
                :class:`odise_mm.video.tracks.Tracker`.
            batch_size: number of frames that run together.
            progress: whether to show a progress bar.
            settings: settings of the results, see :meth:`stream`.

        Yields:
            :class:`~odise_mm.apis.video.SegmentedFrame`, one per frame.

        Raises:
            VideoError: the source is missing or cannot be read, or PyAV is not installed.
            VocabularyError, ConfigError: see :meth:`stream`.
            OutputError: the files cannot be written, or would replace an input.
        """
        from odise_mm.apis.video import segment_frames, write_frames
        from odise_mm.video.frames import Selection, open_frames
        from odise_mm.video.tracks import Tracker
        from odise_mm.video.writing import VideoWriter

        frames = open_frames(
            source, Selection(every, start, end, max_side), rate=rate, max_pixels=self.max_pixels
        )
        names = self.make_vocabulary(texts, stuff_texts, vocabulary)
        tracker = Tracker(min_iou, max_gap, smoothing)
        segmented = segment_frames(self, frames, names, tracker, batch_size, settings)
        if out is not None:
            inputs = self._inputs(texts, vocabulary)
            inputs.add(frames.name)
            writer = VideoWriter(out, names, frames.name, inputs)
            segmented = write_frames(self, segmented, writer)
        return self._counted(segmented, frames.total, progress)

    def video(
        self,
        source: str | os.PathLike | int,
        out: str | os.PathLike,
        texts: Texts | None = None,
        stuff_texts: str | Sequence[str] | None = None,
        vocabulary: Texts | None = None,
        **options: Any,
    ) -> VideoSummary:
        """Segment a whole video and write the drawn video and a JSON file of its segments.

        If the run is interrupted (Ctrl-C), both files contain the frames so far.

        Args:
            source, out, texts, stuff_texts, vocabulary: see :meth:`stream_video`.
            options: other arguments of :meth:`stream_video`.

        Returns:
            The number of frames and tracks, and the written files.

        Raises:
            As for :meth:`stream_video`.
        """
        from odise_mm.apis.video import summarize

        return summarize(
            self.stream_video(source, texts, stuff_texts, vocabulary, out=out, **options), out
        )

    def _counted(
        self, frames: Iterator[SegmentedFrame], total: int | None, show: bool
    ) -> Iterator[SegmentedFrame]:
        """Yield the frames and show a progress bar."""
        with closing(frames), self._progress.bar("frames", total, show) as advance:  # type: ignore[type-var]
            for frame in frames:
                advance()
                yield frame

    def make_vocabulary(
        self,
        texts: Texts | None = None,
        stuff_texts: str | Sequence[str] | None = None,
        vocabulary: Texts | None = None,
    ) -> Vocabulary:
        """Build the vocabulary of a call from its arguments, see :meth:`stream`.

        Without arguments, it is that of the config and the names in the :attr:`memory`.

        Raises:
            VocabularyError: the class names are invalid, or there are none, also in the config.
        """
        parts = []
        if texts is not None or stuff_texts is not None:
            parts.append(Vocabulary.parse(texts, stuff_texts))
        if vocabulary is not None:
            parts += _load_vocabularies(vocabulary)
        memory = getattr(self.model, "memory", None)
        taught = None if memory is None else memory.vocabulary
        if parts:
            names = Vocabulary.join(parts)
            if taught is not None and not any(names.overlap(taught)):
                print_log(
                    f"none of the {len(taught)} taught names is among the class names, so the "
                    f"memory is not used; taught: {some(map(repr, taught.names))}",
                    logger="current",
                    level=logging.WARNING,
                )
            return names
        if taught is not None:
            known = [] if self.default_vocabulary is None else [self.default_vocabulary]
            return Vocabulary.join([*known, taught])
        if self.default_vocabulary is None:
            raise VocabularyError(
                "no class names: pass texts, stuff_texts or vocabulary (the config has none)"
            )
        return self.default_vocabulary

    def draw(self, image: np.ndarray, result: SegmentationResult, **kwargs: Any) -> np.ndarray:
        """Draw a result, with a notice if the model has random weights.

        Args:
            image: (H, W, 3) uint8 BGR.
            result: result of the image.
            kwargs: arguments of :func:`odise_mm.visualization.draw_panoptic`.

        Returns:
            (H', W', 3) uint8 BGR.
        """
        from odise_mm.visualization import draw_panoptic

        if result.random_weights:
            from odise_mm.models.random_weights import RANDOM_WEIGHTS_NOTICE

            kwargs.setdefault("notice", RANDOM_WEIGHTS_NOTICE)
        return draw_panoptic(image, result, **kwargs)

    def _try_to_draw(
        self, image: np.ndarray | None, result: SegmentationResult, **drawing: Any
    ) -> np.ndarray | None:
        """Return the drawing of a result; on errors set ``result.error`` and return None."""
        assert result.panoptic is not None, "only results without an error are drawn"
        try:
            with image_guard(result.image_name, result.panoptic.shape):
                if image is None:
                    assert result.image_path is not None, "images in memory are not restored"
                    image = read_image(result.image_path, max_pixels=self.max_pixels)
                return self.draw(image, result, **drawing)
        except (ImageError, DeviceMemoryError) as err:
            forget_frames(err)
            result.drop_maps().error = err
            return None

    def _try_to_write(
        self, writer: ResultWriter, result: SegmentationResult, drawing: np.ndarray | None
    ) -> None:
        """Write a result; if memory is insufficient, set ``result.error``."""
        try:
            with image_guard(result.image_name, (result.height, result.width)):
                writer.add(result, drawing)
        except DeviceMemoryError as err:
            forget_frames(err)
            result.drop_maps().error = err

    def _inputs(self, *names: Texts | None) -> InputFiles:
        """Return the files that a call reads besides the images."""
        lists = [given if isinstance(given, (list, tuple)) else [given] for given in names]
        files = InputFiles(
            self.cfg.filename, *self._weights, *(n for given in lists for n in given)
        )
        for folder in self._weights:
            if folder is not None and os.path.isdir(folder):
                files.add_below(folder)
        return files

    def _report(self, failed: list[SegmentationResult], done: int) -> None:
        lines = [f"{len(failed)} of {done} images failed:"]
        lines += [f"  {printable(result.error)}" for result in failed]
        self.console.print(Text("\n".join(lines), style="bold red"), soft_wrap=True)


def _choose_weights(
    cfg: Config, weights: str | os.PathLike | None
) -> str | os.PathLike[str] | None:
    """Return the file of the trained parameters; None if there are none, or they are random.

    Raises:
        ConfigError: the config sets random weights, but also weights of some parts.
        CheckpointError: there are no weights, they cannot be downloaded, or the file is missing.
    """
    from odise_mm.checkpoints.published_weights import fetch, find_published, without_weights
    from odise_mm.checkpoints.safe_loading import weights_format

    weights = weights if weights is not None else cfg.get("load_from")
    if weights is not None and os.fspath(weights) != PUBLISHED:
        weights_format(weights)  # before frozen weights are downloaded and models are built
        return weights
    if weights is None and (is_complete(cfg) or runs_on_random_weights(cfg)):
        return None
    if find_published(cfg) is None:
        raise CheckpointError(f"{name_of(cfg)}: {without_weights(cfg)}")
    return fetch(cfg, frozen=False)


def _is_taught(model: torch.nn.Module) -> bool:
    return bool(getattr(model, "memory", None))  # an empty memory changes nothing


def _windows(window: int | None, overlap: int | None) -> Windows | None:
    if window is None:
        if overlap is not None:
            raise ConfigError(f"overlap={overlap!r} is for images in windows: set window, too")
        return None
    check_whole("window", window, 8)
    return Windows(window, window // 4 if overlap is None else overlap)


def _load_vocabularies(vocabulary: Texts) -> list[Vocabulary]:
    """Load vocabularies by name or file; unlike in ``texts``, unknown names are errors."""
    if isinstance(vocabulary, Vocabulary):
        return [vocabulary]
    if isinstance(vocabulary, (str, os.PathLike)):
        text = os.fspath(vocabulary)
        names = [text] if os.path.isfile(text) else re.split("[,;]", text)
        return [Vocabulary.load(name.strip()) for name in names]
    return [part for item in vocabulary for part in _load_vocabularies(item)]
