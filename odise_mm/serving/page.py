"""The web page, made with Gradio.

The page needs no internet: fonts are the system's, and analytics and links to other servers are
turned off. Files of a visitor lie in a folder of this process under names that cannot be guessed,
and are deleted after an hour. :class:`~odise_mm.serving.door.Door` keeps everything else of Gradio
closed.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from odise_mm.errors import OdiseError, VocabularyError
from odise_mm.models import MemoryClassifier, RegionMemory
from odise_mm.serving.door import App, Door
from odise_mm.serving.layout import KEPT_SECONDS, TITLE, lay_out, theme
from odise_mm.serving.lessons import Lessons
from odise_mm.serving.markup import (
    CSS,
    html,
    show_evidence,
    show_lessons,
    show_names,
    show_predictions,
    show_region,
    show_scene,
)
from odise_mm.serving.scene import (
    ENSEMBLE,
    Scene,
    View,
    segment_scene,
)
from odise_mm.serving.uploads import Limits, Names, parse_names, public_message, read_upload
from odise_mm.vocabulary import Vocabulary

if TYPE_CHECKING:
    import gradio

    from odise_mm.apis import OpenVocabInferencer

LOCAL = ["127.0.0.1", "localhost"]
"""Names of the loopback address."""
_REGIONS = {"panoptic", "predictions"}
"""Views of the regions of the panoptic map. Ids of regions mean the same in both."""
EXAMPLES = {
    "toy_scene.jpg": (
        "yellow triangle, golden triangle; red moon; white box; black triangle",
        "sky; brick wall, bricks; water, sea",
    ),
    "pagoda.jpg": ("pagoda, temple; person", "blue sky, sky; tree; lake, water"),
}
"""Images in demo/images with names of things and of stuff."""
MAX_SESSIONS = 32
"""Number of visitors whose results are kept; a result of 1024 x 1024 pixels takes about 40 MB."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """An uploaded image."""

    name: str
    image: np.ndarray  # (H, W, 3) uint8 BGR


def make_page(
    inferencer: OpenVocabInferencer,
    *,
    names: Vocabulary | None = None,
    settings: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    queue: int = 16,
    host: str = "127.0.0.1",
) -> App:
    """Make the ASGI application of the page.

    Args:
        inferencer: The model.
        names: The classes for visitors who type no names. None: names must be typed.
        settings: Settings of the results, such as ``min_area=100``; some have sliders.
        limits: Limits of uploaded images.
        queue: Number of visitors who may wait for the model; more get a message.
        host: Address that the server listens on. If it is the loopback address, requests must be
            addressed to it, so that pages of other sites cannot send any.
    """
    limits = limits or Limits()
    folder = _prepare()
    import fastapi
    import gradio
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    made = _Page(inferencer, names, dict(settings or {}), limits)
    page = made.blocks()
    page.queue(max_size=max(1, queue), default_concurrency_limit=4, api_open=False)
    page.state_session_capacity = MAX_SESSIONS
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gradio.mount_gradio_app(
        app,
        page,
        "/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        allowed_paths=[os.fspath(path) for path, *_ in made.examples],
        max_file_size=limits.max_bytes,
        theme=theme(),
        css=CSS,
    )
    if host in LOCAL:
        return Door(TrustedHostMiddleware(app, allowed_hosts=LOCAL), limits.max_bytes, folder)
    return Door(app, limits.max_bytes, folder)


def _prepare() -> str:
    """Choose and return Gradio's folder for files, and turn off what it sends to its makers."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    folder = tempfile.mkdtemp(prefix="odise_mm_page_")  # only this user may read it
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder
    return folder


def example_images() -> list[tuple[Path, str, str]]:
    """Return the examples that are installed: image, names of things and of stuff."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / ".mim/demo/images", package.parent / "demo/images"):
        found = [(folder / name, *names) for name, names in EXAMPLES.items()]
        if all(path.is_file() for path, *_ in found):
            return found
    return []


def _public(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn exceptions into messages that show nothing of the server."""
    import gradio

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except gradio.Error:
            raise
        except Exception as err:
            if not isinstance(err, OdiseError | FloatingPointError):
                _LOG.exception("the web page failed")
            raise _error(escape(public_message(err), quote=False)) from None

    return wrapped


def _choices(scene: Scene | None, classifier: str) -> tuple[Any, str]:
    """Return who can name the regions, as a component, and who does."""
    import gradio

    classifiers = (ENSEMBLE,) if scene is None else scene.classifiers
    classifier = classifier if classifier in classifiers else ENSEMBLE
    return gradio.Radio(list(classifiers), value=classifier), classifier


def _new_folder() -> Path:
    """Create a folder for a file to download, whose name cannot be guessed."""
    folder = Path(os.environ["GRADIO_TEMP_DIR"], secrets.token_hex(32))
    folder.mkdir(mode=0o700)
    return folder


def _error(message: str) -> Exception:
    """Return an exception that shows a message on the page."""
    import gradio

    return gradio.Error(message, duration=20, print_exception=False)


class _Page:
    """The page and what happens on it.

    Methods with "event" in their docstring return the new values of components, see
    :meth:`_connect`.
    """

    def __init__(
        self,
        inferencer: OpenVocabInferencer,
        default: Vocabulary | None,
        settings: dict[str, Any],
        limits: Limits,
    ) -> None:
        self.inferencer = inferencer
        self.default = default
        self.settings = settings
        self.limits = limits
        # Without classifiers, a mask source names the masks, and nothing embeds them.
        model = inferencer.model
        self.teaches = hasattr(model.ensemble, "memory_alpha") and len(model.classifiers) > 0
        self.start = inferencer.memory if self.teaches else RegionMemory()
        self.sliders = self._sliders()
        self.examples = [example for example in example_images() if self._knows(*example[1:])]

    def _sliders(self) -> dict[str, float]:
        """Return the settings with sliders and their values at the start."""
        model = self.inferencer.model
        values = {**model.test_cfg, **self.settings}
        found = {
            "overlap_threshold": values.get("overlap_threshold", 0.8),
            "score_threshold": values.get("score_threshold", 0.0),
        }
        words = [part for part in model.classifiers if not isinstance(part, MemoryClassifier)]
        if len(words) > 1 and hasattr(model.ensemble, "with_weights"):
            for name in ("alpha", "beta"):
                found[name] = values.get(name, getattr(model.ensemble, name))
        if self.teaches:
            found["memory_weight"] = values.get("memory_weight", 1.0)
        return found

    def _knows(self, texts: str, stuff: str) -> bool:
        """Return whether the model's text encoder knows names; small ones know few words."""
        try:
            self.names(texts, stuff, None)
        except VocabularyError:
            return False
        return True

    def names(
        self,
        texts: str,
        stuff: str,
        lists: Sequence[str] | None,
        lessons: Lessons | None = None,
    ) -> Names:
        """Parse the typed names and the chosen lists.

        Raises:
            VocabularyError: They are invalid, or the model's text encoder does not know a word that
                is not taught either.
        """
        model = self.inferencer.model
        names = parse_names(texts, stuff, ",".join(lists or ()))
        tokenizer = getattr(getattr(model, "clip", None), "tokenizer", None)
        if names.vocabulary is not None and tokenizer is not None:
            taught = self.start if lessons is None else lessons.memory
            words, _ = model.readable(names.vocabulary, taught.names)
            tokenizer(words.flat[0])
        return names

    def understand(
        self, texts: str, stuff: str, lists: Sequence[str] | None, lessons: Lessons | None = None
    ) -> str:
        """Event: show what was understood of the names, or what is wrong with them."""
        try:
            return show_names(self.names(texts, stuff, lists, lessons), self.default)
        except OdiseError as err:
            return html(f'<div class="warning">{escape(public_message(err))}</div>')

    def read(self, upload: Mapping[str, Any] | None) -> Picture | None:
        """Event: read an uploaded image."""
        if not upload or not upload.get("path"):
            return None
        name = str(upload.get("orig_name") or Path(upload["path"]).name)
        content = Path(upload["path"]).read_bytes()  # its size was checked while it arrived
        return Picture(name, read_upload(content, self.limits, name))

    def segment(
        self,
        picture: Picture | None,
        texts: str,
        stuff: str,
        lists: Sequence[str] | None,
        lessons: Lessons | None,
        kind: str,
        classifier: str,
        *numbers: float,
        progress: Any = None,
    ) -> tuple:
        """Event: segment the image."""
        import gradio

        if picture is None:
            raise _error("Upload an image or choose an example first.")
        progress((0, 3), desc="Reading the names", unit="steps")
        vocabulary = self.names(texts, stuff, lists, lessons).vocabulary or self.default
        if vocabulary is None:
            raise _error("Type names of things or stuff, or choose a list.")
        progress((1, 3), desc="Segmenting", unit="steps")
        start = time.perf_counter()
        settings = {**self.settings, **self._settings(numbers)}
        if lessons:  # names that words cannot express are known from the examples alone
            vocabulary, _ = self.inferencer.model.readable(vocabulary, lessons.taught.names)
        scene = segment_scene(self.inferencer, picture.image, picture.name, vocabulary, **settings)
        if lessons:
            scene = lessons.compared(scene)
        seconds = time.perf_counter() - start
        progress((2, 3), desc="Drawing", unit="steps")
        choices, classifier = _choices(scene, classifier)
        line = show_scene(scene, seconds)
        return (
            scene,
            line,
            choices,
            gradio.File(None, visible=False),
            *self.show(scene, kind, classifier),
        )

    def teach(
        self,
        lessons: Lessons | None,
        scene: Scene | None,
        kind: str,
        classifier: str,
        number: int | None,
        name: str,
        is_stuff: bool,
    ) -> tuple:
        """Event: remember the chosen region as an example, and compare all masks with it."""
        if scene is None:
            raise _error("Segment an image first.")
        if kind not in _REGIONS:
            raise _error("Choose the region in the view Panoptic or Who says what.")
        lessons = lessons or Lessons(self.start)
        lessons.teach(scene, number, name, is_thing=not is_stuff)
        return self._after_lesson(lessons, scene, kind, classifier, number)

    def undo(
        self,
        lessons: Lessons | None,
        scene: Scene | None,
        kind: str,
        classifier: str,
        number: int | None,
    ) -> tuple:
        """Event: take the last example back."""
        lessons = lessons or Lessons(self.start)
        lessons.undo()
        return self._after_lesson(lessons, scene, kind, classifier, number)

    def _after_lesson(
        self,
        lessons: Lessons,
        scene: Scene | None,
        kind: str,
        classifier: str,
        number: int | None,
    ) -> tuple:
        """Compare all masks with the examples, and keep the chosen region."""
        made = None if scene is None else lessons.compared(scene)
        if scene is not None and made is not None and kind in _REGIONS and number is not None:
            number = scene.same_region(number, made)
        choices, classifier = _choices(made, classifier)
        line = show_lessons(lessons, len(self.start))
        return (lessons, made, line, choices, *self.show(made, kind, classifier, number))

    def save(self, lessons: Lessons | None, pictures: bool) -> Any:
        """Event: write the examples of this visitor for download."""
        import gradio

        lessons = lessons or Lessons(self.start)
        return gradio.File(os.fspath(lessons.save(_new_folder(), pictures)), visible=True)

    def remake(
        self,
        scene: Scene | None,
        kind: str,
        classifier: str,
        number: int | None,
        *numbers: float,
    ) -> tuple:
        """Event: make the result again with other settings."""
        if scene is not None:
            scene = scene.with_settings(**self._settings(numbers))
        return (scene, *self.show(scene, kind, classifier, number))

    def show(
        self,
        scene: Scene | None,
        kind: str,
        classifier: str,
        number: int | None = None,
        former: str | None = None,
    ) -> tuple:
        """Event: show a view.

        Args:
            scene: what to show.
            kind: which view.
            classifier: who names the regions.
            number: id of the chosen region.
            former: the view that was shown before, to which ``number`` belongs.
        """
        import gradio

        if scene is None:
            return None, None, gradio.Radio([], visible=False), "", "", ""
        if former is not None and not {kind, former} <= _REGIONS:
            number = None
        view = scene.view(kind, classifier)
        number = number if view.region(number) else None
        regions = gradio.Radio(view.labels(), value=number, visible=bool(view.regions))
        drawing, *about = self.choose(scene, view, kind, number)
        return (view, drawing, regions, *about)

    def choose(
        self, scene: Scene | None, view: View | None, kind: str, number: int | None
    ) -> tuple:
        """Event: highlight a region, and tell what is known about it."""
        import gradio

        if scene is None or view is None:
            return None, "", "", ""
        labels = "; ".join(label for label, _ in view.labels()[:20])
        drawing = gradio.Image(
            view.highlighted(number),
            alt_text=f"The segmented image. Regions: {labels or 'none'}",  # for screen readers
        )
        known = number if kind in _REGIONS else None
        return (
            drawing,
            show_region(view, number),
            show_predictions({} if known is None else scene.predictions(known)),
            show_evidence(() if known is None else scene.evidence(known)),
        )

    def click(self, scene: Scene | None, view: View | None, kind: str, event: Any) -> tuple:
        """Event: choose the region that was clicked, or a mask that became no region."""
        import gradio

        region = None if view is None else view.region_at(*event.index)
        number = None if region is None else region.id
        if region is None and scene is not None and view is not None and kind in _REGIONS:
            view, number = scene.with_dropped(view, *event.index)
        labels = [] if view is None else view.labels()
        regions = gradio.Radio(labels, value=number, visible=bool(labels))
        return (view, regions, *self.choose(scene, view, kind, number))

    def write(self, scene: Scene | None, form: str) -> Any:
        """Event: write a file for download."""
        import gradio

        if scene is None:
            raise _error("Segment an image first.")
        return gradio.File(os.fspath(scene.write(form, _new_folder())), visible=True)

    def _settings(self, numbers: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.sliders, numbers, strict=True))

    def blocks(self) -> gradio.Blocks:
        """Return the page."""
        import gradio as gr

        with gr.Blocks(
            title=TITLE, analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)
        ) as page:
            start = len(self.start) if self.teaches else None
            self._connect(lay_out(self.default, self.examples, self.sliders, start))
        return page

    def _connect(self, on: SimpleNamespace) -> None:
        """Connect the events of the components with the methods."""
        import gradio as gr

        # Gradio reads from the signatures what to pass in addition: a progress bar, and the click.
        def segment(*args: Any, progress: Any = gr.Progress()) -> tuple:  # noqa: B008
            return self.segment(*args, progress=progress)

        def click(scene: Any, view: Any, kind: Any, event: Any) -> tuple:
            return self.click(scene, view, kind, event)

        click.__annotations__["event"] = gr.SelectData
        names = [on.texts, on.stuff, on.lists, on.lessons]
        shown = [on.view, on.drawing, on.regions]
        about = [on.details, on.predictions, on.evidence]
        private = dict(api_visibility="private")
        light = dict(**private, show_progress="hidden")
        # What cannot fail runs outside the queue: the queue's stream of answers may end just when
        # the visitor presses Segment, and Gradio 6.31 then waits for the answer in vain.
        direct = dict(**light, queue=False)
        drawn = dict(**private, show_progress_on=[on.drawing])

        for example, path, texts in on.examples:
            values = [os.fspath(path), *texts]
            example.click(
                lambda values=values: values, None, [on.upload, on.texts, on.stuff], **direct
            )
        on.upload.change(_public(self.read), on.upload, on.picture, preprocess=False, **light)
        gr.on(
            [part.change for part in names[:3]],
            _public(self.understand),
            names,
            on.understood,
            trigger_mode="always_last",
            **direct,
        )
        gr.on(
            [on.segment.click, on.texts.submit, on.stuff.submit],
            _public(segment),
            [on.picture, *names, on.kind, on.classifier, *on.knobs],
            [on.scene, on.status, on.classifier, on.file, *shown, *about],
            concurrency_id="model",
            concurrency_limit=1,
            **drawn,
        )
        gr.on(
            [knob.change for knob in on.knobs],
            _public(self.remake),
            [on.scene, on.kind, on.classifier, on.regions, *on.knobs],
            [on.scene, *shown, *about],
            trigger_mode="always_last",
            **drawn,
        )
        on.reset.click(lambda: [*self.sliders.values()], None, on.knobs, **direct)
        state = [on.scene, on.kind, on.classifier, on.regions]
        for name, tab in on.tabs.items():
            tab.select(
                lambda now, name=name: (name, now), on.kind, [on.kind, on.former], **direct
            ).then(_public(self.show), [*state, on.former], [*shown, *about], **drawn)
        on.classifier.input(_public(self.show), state, [*shown, *about], **light)
        on.drawing.select(
            _public(click),
            [on.scene, on.view, on.kind],
            [on.view, on.regions, on.drawing, *about],
            **light,
        )
        on.regions.input(
            _public(self.choose),
            [on.scene, on.view, on.kind, on.regions],
            [on.drawing, *about],
            **light,
        )
        on.save.click(
            _public(self.write), [on.scene, on.form], on.file, show_progress_on=[on.form], **private
        )
        if not self.teaches:
            return
        changed = [on.lessons, on.scene, on.taught, on.classifier, *shown, *about]
        gr.on(
            [on.teach.click, on.name.submit],
            _public(self.teach),
            [on.lessons, *state, on.name, on.is_stuff],
            changed,
            **drawn,
        )
        on.undo.click(_public(self.undo), [on.lessons, *state], changed, **drawn)
        on.keep.click(
            _public(self.save),
            [on.lessons, on.pictures],
            on.memory,
            show_progress_on=[on.taught],
            **private,
        )
