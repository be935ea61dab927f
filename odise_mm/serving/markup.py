"""What the web page shows of names, scenes, regions and examples, as HTML, and its style.

Everything that a visitor or a file named is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from odise_mm.serving.lessons import Lessons
from odise_mm.serving.scene import Scene, View
from odise_mm.serving.uploads import Names
from odise_mm.structures import Evidence
from odise_mm.utils.display import printable, some
from odise_mm.utils.thumbnails import as_data_url
from odise_mm.vocabulary import Vocabulary

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
.odise td img { display: block; height: 4rem; max-width: 8rem; object-fit: contain;
  object-position: left; margin: 0 0 .2rem 0; }
.odise .warning { color: var(--body-text-color); background: var(--color-accent-soft);
  border-left: 3px solid var(--color-accent); padding: .3rem .6rem; margin: .3rem 0; }
.odise .faint { color: var(--body-text-color-subdued); }
"""


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
    return html(f'<span class="faint">{escape(text)}</span>', *lines)


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
    return html(*lines)


def show_region(view: View, number: int | None) -> str:
    """Return name, score and area of a region, and the note of the view, as HTML."""
    region = view.region(number)
    if region is not None:
        name, about = view.describe(region)
        return html(f"<b>{escape(name)}</b>: {escape(about)}")
    hint = "Click a region in the image, or choose it in the list."
    hint = f"{view.note} {hint if view.regions else 'Nothing was found.'}"
    return html(f'<span class="faint">{escape(hint)}</span>')


def show_predictions(predictions: Mapping[str, Sequence[tuple[str, float]]]) -> str:
    """Return the most probable names of a region by classifier, as an HTML table."""
    if not predictions:
        return ""
    head = "".join(f'<th scope="col">{escape(classifier)}</th>' for classifier in predictions)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_cell(*pair)}</td>" for pair in row) + "</tr>"
        for row in zip(*predictions.values(), strict=True)
    )
    return html(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")


def _cell(name: str, probability: float) -> str:
    if not probability:  # by a memory that recognizes nothing else
        return ""
    return f"{escape(name)}<span class=number>{probability:.3f}</span>"


def show_evidence(evidence: Sequence[Evidence]) -> str:
    """Return the examples that a region is most similar to, as HTML."""
    if not evidence:
        return ""
    cells = "".join(
        f"<td>{_picture(one)}{escape(printable(one.name, limit=40))}"
        f"<span class=number>{one.similarity:.2f}</span><br>"
        f'<span class="faint">{escape(_file_name(one.image))}</span></td>'
        for one in evidence
    )
    return html(f"<table><tr><th>Most similar examples</th>{cells}</tr></table>")


def _picture(evidence: Evidence) -> str:
    if evidence.picture is None:
        return ""
    name = escape(printable(evidence.name, limit=40))
    return f'<img src="{as_data_url(evidence.picture)}" alt="example of {name}">'


def _file_name(image: str) -> str:
    """Return the name of an image without its folders, which are those of the server."""
    return printable(image.replace("\\", "/").rsplit("/", 1)[-1], limit=40)


def show_lessons(lessons: Lessons | None, start: int) -> str:
    """Return what a visitor taught, as HTML.

    Args:
        lessons: the visitor's examples; None: none.
        start: number of examples that the page was started with.
    """
    names = lessons.taught.names if lessons else {}
    listed = some([f"{printable(name, limit=40)} ({count})" for name, count in names.items()], 12)
    lines = [f"Taught by you: {listed}." if names else "You have taught nothing yet."]
    if start:
        lines.append(f"The page started with {start:,} examples.")
    return html(f'<span class="faint">{escape(" ".join(lines))}</span>')


def html(*lines: str) -> str:
    """Return lines of HTML in the page's style."""
    return f'<div class="odise">{"".join(lines)}</div>'
