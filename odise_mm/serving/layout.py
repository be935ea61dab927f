"""The parts of the web page and where they are, made with Gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from odise_mm.serving.markup import html, show_lessons, show_names
from odise_mm.serving.scene import DRAWING, ENSEMBLE, file_formats
from odise_mm.serving.uploads import Names
from odise_mm.vocabulary import BUILTIN, Vocabulary

if TYPE_CHECKING:
    import gradio

TITLE = "Open-vocabulary panoptic segmentation"
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
    "memory_weight": ("Weight of the examples", "0: as if nothing was taught"),
}
"""Label and explanation of the sliders."""
KEPT_SECONDS = 3600
"""How long files, results and examples of a visitor are kept."""


def theme() -> gradio.themes.Base:
    """Return the colors and fonts, which are those of the visitor's system."""
    import gradio

    return gradio.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def lay_out(
    default: Vocabulary | None,
    examples: Sequence[tuple[Path, str, str]],
    sliders: Mapping[str, float],
    start: int | None,
) -> SimpleNamespace:
    """Lay out the page inside of ``gradio.Blocks``.

    Args:
        default: the classes for visitors who type no names.
        examples: images, with names of things and of stuff.
        sliders: settings with sliders, and their values at the start.
        start: number of examples that visitors start with; None: the model cannot be taught.

    Returns:
        The parts by name.
    """
    import gradio as gr

    gr.HTML(
        f"<h1>{TITLE}</h1><p>Choose an image, type the names of what to look for, and "
        "press Segment.</p>"
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            inputs = _inputs(default, examples, sliders)
        with gr.Column(scale=8, min_width=320):
            outputs = _outputs(start)
    return SimpleNamespace(**inputs, **outputs)


def _inputs(
    default: Vocabulary | None,
    examples: Sequence[tuple[Path, str, str]],
    sliders: Mapping[str, float],
) -> dict[str, Any]:
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
        lists=gr.Dropdown(list(BUILTIN), multiselect=True, label="Lists of names", elem_id="lists"),
        understood=gr.HTML(show_names(Names(None), default), elem_id="understood"),
        segment=gr.Button("Segment", variant="primary", elem_id="segment"),
    )
    with gr.Row(elem_id="examples"):
        parts["examples"] = [
            (gr.Button(f"Example: {path.stem.replace('_', ' ')}", size="sm"), path, names)
            for path, *names in examples
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
            for name, value in sliders.items()
        ]
        parts["reset"] = gr.Button("Reset", size="sm", elem_id="reset")
    return parts


def _outputs(start: int | None) -> dict[str, Any]:
    import gradio as gr

    parts: dict[str, Any] = dict(
        scene=gr.State(None, time_to_live=KEPT_SECONDS),
        lessons=gr.State(None, time_to_live=KEPT_SECONDS),
        view=gr.State(None, time_to_live=KEPT_SECONDS),
        kind=gr.State("panoptic"),
        former=gr.State("panoptic"),  # the view before
        tabs={},
    )
    nothing = html('<span class="faint">Nothing segmented yet.</span>')
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
    parts["evidence"] = gr.HTML(elem_id="evidence")
    if start is not None:
        parts |= _lessons(start)
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


def _lessons(start: int) -> dict[str, Any]:
    import gradio as gr

    parts: dict[str, Any] = {}
    with gr.Accordion("Teach", open=True, elem_id="lessons"):
        with gr.Row(equal_height=False):
            parts["name"] = gr.Textbox(
                label="Name of the chosen region",
                info="Similar regions are then found by this example",
                placeholder="oat crackers",
                scale=4,
                elem_id="name",
            )
            parts["is_stuff"] = gr.Checkbox(
                label="Background", info="Such as sky", scale=1, min_width=110, elem_id="is_stuff"
            )
        with gr.Row():
            parts["teach"] = gr.Button("Teach", variant="primary", size="sm", elem_id="teach")
            parts["undo"] = gr.Button("Undo", size="sm", elem_id="undo")
            parts["pictures"] = gr.Checkbox(
                label="Pictures in the file",
                value=True,
                container=False,
                min_width=160,
                elem_id="pictures",
            )
            parts["keep"] = gr.Button("Make a memory file", size="sm", elem_id="keep")
        parts["taught"] = gr.HTML(show_lessons(None, start), elem_id="taught")
        parts["memory"] = gr.File(
            label="Memory file", interactive=False, visible=False, elem_id="memory"
        )
    return parts
