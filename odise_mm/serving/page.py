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
from odise_mm.serving.door import App, Door
from odise_mm.serving.scene import (
    DRAWING,
    ENSEMBLE,
    Scene,
    View,
    file_formats,
    segment_scene,
)
from odise_mm.serving.uploads import Limits, Names, parse_names, public_message, read_upload
from odise_mm.utils.display import some
from odise_mm.vocabulary import BUILTIN, Vocabulary

if TYPE_CHECKING:
    import gradio

    from odise_mm.apis import OpenVocabInferencer

TITLE = "Open-vocabulary panoptic segmentation"
LOCAL = ["127.0.0.1", "localhost"]
"""Names of the loopback address."""
TABS = {
    "panoptic": "Panoptic",
    "semantic": "Semantic",
    "instances": "Instances",
    "predictions": "Who says what",
}
KNOBS = {
    "overlap_threshold": ("Overlap threshold", "part of its mask that a region must keep"),
    "score_threshold": ("Minimum score", "regions must have a higher score"),
    "alpha": ("CLIP's weight for base classes", "names that the model was trained with"),
    "beta": ("CLIP's weight for novel classes", "all other names"),
}
"""Label and explanation of the sliders."""
EXAMPLES = {
    "toy_scene.jpg": (
        "yellow triangle, golden triangle; red moon; white box; black triangle",
        "sky; brick wall, bricks; water, sea",
    ),
    "pagoda.jpg": ("pagoda, temple; person", "blue sky, sky; tree; lake, water"),
}
"""Images in demo/images with names of things and of stuff."""
KEPT_SECONDS = 3600
"""How long files and results of a visitor are kept."""
MAX_SESSIONS = 32
"""Number of visitors whose results are kept; a result of 1024 x 1024 pixels takes about 40 MB."""
CSS = """
.gradio-container { width: 100% !important; max-width: 1500px !important;
  margin: 0 auto !important; }
#drawing img { cursor: crosshair; }
#regions label span { white-space: nowrap; }
#regions .wrap { max-height: 11.5rem; overflow-y: auto; }
#understood .odise { max-height: 9rem; overflow-y: auto; }
#files { align-items: end; }
.odise table { border-collapse: collapse; font-size: .9rem; border: none !important; }
.odise tr { border: none !important; background: none !important; }
.odise th { text-align: left; font-weight: 600; }
.odise th, .odise td { padding: .15rem 1.6rem .15rem 0 !important; vertical-align: top;
  border: none !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.odise td { max-width: 17rem; overflow-wrap: break-word; }
#predictions .odise { overflow-x: auto; }
.odise .number { color: var(--body-text-color-subdued); padding-left: .4rem;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.odise .warning { color: var(--body-text-color); background: var(--color-accent-soft);
  border-left: 3px solid var(--color-accent); padding: .3rem .6rem; margin: .3rem 0; }
.odise .faint { color: var(--body-text-color-subdued); }
"""

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
        theme=_theme(),
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


def _theme() -> gradio.themes.Base:
    import gradio

    return gradio.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def example_images() -> list[tuple[Path, str, str]]:
    """Return the examples that are installed: image, names of things and of stuff."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / ".mim/demo/images", package.parent / "demo/images"):
        found = [(folder / name, *names) for name, names in EXAMPLES.items()]
        if all(path.is_file() for path, *_ in found):
            return found
    return []


def show_names(names: Names, default: Vocabulary | None) -> str:
    """Return what was understood of typed names, and doubts about them, as HTML."""
    if names.vocabulary is not None:
        long = len(names.vocabulary) > 50
        text = names.vocabulary.describe(6 if long else 25)
    elif default is not None:
        text = f"Without names: the model's {len(default)} classes ({some(default.names, 6)})"
    else:
        text = "No names yet."
    lines = [f'<div class="warning">{escape(warning)}</div>' for warning in names.warnings]
    return _html(f'<span class="faint">{escape(text)}</span>', *lines)


def show_scene(scene: Scene, seconds: float) -> str:
    """Return what was segmented and how long it took, as HTML."""
    height, width = scene.image.shape[:2]
    lines = [
        f"<b>{escape(scene.name)}</b>: {width} x {height} pixels, {len(scene.vocabulary)} classes, "
        f"{len(scene.result.segments)} regions found in {seconds:.1f} s"
    ]
    if scene.result.random_weights:
        text = "The weights of this model are random, so the result has no meaning."
        lines.append(f'<div class="warning">{text}</div>')
    return _html(*lines)


def show_region(view: View, number: int | None) -> str:
    """Return name, score and area of a region, and the note of the view, as HTML."""
    region = view.region(number)
    if region is not None:
        name, about = view.describe(region)
        return _html(f"<b>{escape(name)}</b>: {escape(about)}")
    hint = "Click a region in the image, or choose it in the list."
    hint = f"{view.note} {hint if view.regions else 'Nothing was found.'}"
    return _html(f'<span class="faint">{escape(hint)}</span>')


def show_predictions(predictions: Mapping[str, Sequence[tuple[str, float]]]) -> str:
    """Return the most probable names of a region by classifier, as an HTML table."""
    if not predictions:
        return ""
    head = "".join(f'<th scope="col">{escape(classifier)}</th>' for classifier in predictions)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(n)}<span class=number>{p:.3f}</span></td>" for n, p in row)
        + "</tr>"
        for row in zip(*predictions.values(), strict=True)
    )  # fmt: skip
    return _html(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")


def _html(*lines: str) -> str:
    return f'<div class="odise">{"".join(lines)}</div>'


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
        if len(model.classifiers) > 1 and hasattr(model.ensemble, "with_weights"):
            for name in ("alpha", "beta"):
                found[name] = values.get(name, getattr(model.ensemble, name))
        return found

    def _knows(self, texts: str, stuff: str) -> bool:
        """Return whether the model's text encoder knows names; small ones know few words."""
        try:
            self.names(texts, stuff, None)
        except VocabularyError:
            return False
        return True

    def names(self, texts: str, stuff: str, lists: Sequence[str] | None) -> Names:
        """Parse the typed names and the chosen lists.

        Raises:
            VocabularyError: They are invalid, or the model's text encoder does not know a word.
        """
        names = parse_names(texts, stuff, ",".join(lists or ()))
        tokenizer = getattr(getattr(self.inferencer.model, "clip", None), "tokenizer", None)
        if names.vocabulary is not None and tokenizer is not None:
            tokenizer(names.vocabulary.flat[0])
        return names

    def understand(self, texts: str, stuff: str, lists: Sequence[str] | None) -> str:
        """Event: show what was understood of the names, or what is wrong with them."""
        try:
            return show_names(self.names(texts, stuff, lists), self.default)
        except OdiseError as err:
            return _html(f'<div class="warning">{escape(public_message(err))}</div>')

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
        vocabulary = self.names(texts, stuff, lists).vocabulary or self.default
        if vocabulary is None:
            raise _error("Type names of things or stuff, or choose a list.")
        progress((1, 3), desc="Segmenting", unit="steps")
        start = time.perf_counter()
        settings = {**self.settings, **self._settings(numbers)}
        scene = segment_scene(self.inferencer, picture.image, picture.name, vocabulary, **settings)
        seconds = time.perf_counter() - start
        progress((2, 3), desc="Drawing", unit="steps")
        classifier = classifier if classifier in scene.classifiers else ENSEMBLE
        choices = gradio.Radio(list(scene.classifiers), value=classifier)
        line = show_scene(scene, seconds)
        return (
            scene,
            line,
            choices,
            gradio.File(None, visible=False),
            *self.show(scene, kind, classifier),
        )

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
            return None, None, gradio.Radio([], visible=False), "", ""
        # Ids of regions mean the same in these two views only.
        if former is not None and not {kind, former} <= {"panoptic", "predictions"}:
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
            return None, "", ""
        labels = "; ".join(label for label, _ in view.labels()[:20])
        drawing = gradio.Image(
            view.highlighted(number),
            alt_text=f"The segmented image. Regions: {labels or 'none'}",  # for screen readers
        )
        known = kind in ("panoptic", "predictions") and number is not None
        predictions = scene.predictions(number) if known and number is not None else {}
        return drawing, show_region(view, number), show_predictions(predictions)

    def click(self, scene: Scene | None, view: View | None, kind: str, event: Any) -> tuple:
        """Event: choose the region that was clicked."""
        import gradio

        region = None if view is None else view.region_at(*event.index)
        number = None if region is None else region.id
        return (gradio.Radio(value=number), *self.choose(scene, view, kind, number))

    def write(self, scene: Scene | None, form: str) -> Any:
        """Event: write a file for download."""
        import gradio

        if scene is None:
            raise _error("Segment an image first.")
        folder = Path(os.environ["GRADIO_TEMP_DIR"], secrets.token_hex(32))
        folder.mkdir(mode=0o700)
        return gradio.File(os.fspath(scene.write(form, folder)), visible=True)

    def _settings(self, numbers: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.sliders, numbers, strict=True))

    def blocks(self) -> gradio.Blocks:
        """Return the page."""
        import gradio as gr

        with gr.Blocks(
            title=TITLE, analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)
        ) as page:
            gr.HTML(
                f"<h1>{TITLE}</h1><p>Choose an image, type the names of what to look for, and "
                "press Segment.</p>"
            )
            with gr.Row(equal_height=False):
                with gr.Column(scale=4, min_width=320):
                    inputs = self._lay_out_inputs()
                with gr.Column(scale=8, min_width=320):
                    outputs = self._lay_out_outputs()
            self._connect(SimpleNamespace(**inputs, **outputs))
        return page

    def _lay_out_inputs(self) -> dict[str, Any]:
        import gradio as gr

        parts: dict[str, Any] = dict(
            picture=gr.State(None, time_to_live=KEPT_SECONDS),
            upload=gr.Image(
                label="Image",
                type="filepath",
                sources=["upload", "clipboard"],
                buttons=[],
                height=260,
                elem_id="upload",
            ),
            texts=gr.Textbox(
                label="Things",
                info="Separate classes with ; and synonyms with ,",
                placeholder="delivery van, van; cyclist",
                elem_id="texts",
            ),
            stuff=gr.Textbox(
                label="Stuff",
                info="Background, such as sky: one region per class",
                placeholder="cobblestone; sky",
                elem_id="stuff",
            ),
            lists=gr.Dropdown(
                list(BUILTIN), multiselect=True, label="Lists of names", elem_id="lists"
            ),
            understood=gr.HTML(show_names(Names(None), self.default), elem_id="understood"),
            segment=gr.Button("Segment", variant="primary", elem_id="segment"),
        )
        with gr.Row(elem_id="examples"):
            parts["examples"] = [
                (gr.Button(f"Example: {path.stem.replace('_', ' ')}", size="sm"), path, names)
                for path, *names in self.examples
            ]
        with gr.Accordion("Settings", open=True):
            parts["knobs"] = [
                gr.Slider(
                    0,
                    1,
                    value=value,
                    step=0.01,
                    label=KNOBS[name][0],
                    info=KNOBS[name][1],
                    buttons=[],
                    elem_id=name,
                )
                for name, value in self.sliders.items()
            ]
            parts["reset"] = gr.Button("Reset", size="sm", elem_id="reset")
        return parts

    def _lay_out_outputs(self) -> dict[str, Any]:
        import gradio as gr

        parts: dict[str, Any] = dict(
            scene=gr.State(None, time_to_live=KEPT_SECONDS),
            view=gr.State(None, time_to_live=KEPT_SECONDS),
            kind=gr.State("panoptic"),
            former=gr.State("panoptic"),  # the view before
            tabs={},
        )
        nothing = _html('<span class="faint">Nothing segmented yet.</span>')
        parts["status"] = gr.HTML(nothing, elem_id="status")
        with gr.Tabs(elem_id="views"):
            for name, label in TABS.items():
                with gr.Tab(label, id=name) as parts["tabs"][name]:
                    if name == "predictions":
                        parts["classifier"] = gr.Radio(
                            [ENSEMBLE], value=ENSEMBLE, label="Names by", elem_id="classifier"
                        )
        parts["drawing"] = gr.Image(
            label="Result",
            show_label=False,
            interactive=False,
            buttons=["download", "fullscreen"],
            height=560,
            elem_id="drawing",
            alt_text="The segmented image",
        )
        parts["regions"] = gr.Radio([], label="Regions", visible=False, elem_id="regions")
        parts["details"] = gr.HTML(elem_id="details")
        parts["predictions"] = gr.HTML(elem_id="predictions")
        with gr.Row(equal_height=False, elem_id="files"):
            parts["form"] = gr.Dropdown(
                [DRAWING, *file_formats()],
                value=DRAWING,
                label="Format of the panoptic result",
                scale=2,
                elem_id="format",
            )
            parts["save"] = gr.Button("Make the file", scale=1, elem_id="save")
            parts["file"] = gr.File(
                label="Download", interactive=False, visible=False, scale=3, elem_id="file"
            )
        return parts

    def _connect(self, on: SimpleNamespace) -> None:
        """Connect the events of the components with the methods."""
        import gradio as gr

        # Gradio reads from the signatures what to pass in addition: a progress bar, and the click.
        def segment(*args: Any, progress: Any = gr.Progress()) -> tuple:  # noqa: B008
            return self.segment(*args, progress=progress)

        def click(scene: Any, view: Any, kind: Any, event: Any) -> tuple:
            return self.click(scene, view, kind, event)

        click.__annotations__["event"] = gr.SelectData
        names, shown = [on.texts, on.stuff, on.lists], [on.view, on.drawing, on.regions]
        about = [on.details, on.predictions]
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
            [part.change for part in names],
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
            _public(click), [on.scene, on.view, on.kind], [on.regions, on.drawing, *about], **light
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
