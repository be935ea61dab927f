"""Tables for terminals and markdown, and reading of the JSON files of tools/test.py."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from odise_mm.annotations.json_fields import is_number, is_text
from odise_mm.errors import OdiseError
from odise_mm.utils import files
from odise_mm.utils.display import markdown_cell, printable
from odise_mm.utils.old_keys import rename_recorded_keys

FORMATS = ("table", "markdown", "json")


@dataclass
class Table:
    """A table with a left-aligned first column and right-aligned other columns.

    Attributes:
        title: Title above the table.
        columns: Headings.
        rows: Formatted cells; an empty row is a rule.
        notes: Sentences below the table.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rich(self) -> RichTable:
        """Convert to a table of ``rich``, without the notes."""
        table = RichTable(title=_text(self.title), title_justify="left")
        for index, name in enumerate(self.columns):
            table.add_column(_text(name), justify="right" if index else "left")
        for row in self.rows:
            if row:
                table.add_row(*map(_text, row))
            else:
                table.add_section()
        return table

    def markdown(self) -> str:
        """Convert to markdown; markup in titles, cells and notes is escaped."""
        rule = " | ".join([":--", *["--:"] * (len(self.columns) - 1)])
        lines = [f"### {markdown_cell(self.title)}", "", _line(self.columns), f"| {rule} |"]
        lines += [_line(row) for row in self.rows if row]
        if self.notes:
            lines += ["", *(f"- {markdown_cell(note)}" for note in self.notes)]
        return "\n".join(lines)


def _text(cell: str) -> Text:
    """Wrap a text without interpreting markup or terminal escapes."""
    return Text(printable(cell))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown_cell, cells)) + " |"


def show(tables: Sequence[Table], data: dict, form: str) -> None:
    """Print tables in one of :data:`FORMATS`.

    Args:
        tables: The tables.
        data: The same content in JSON types, for the format "json".
        form: One of :data:`FORMATS`.
    """
    if form == "json":
        print(json.dumps(data, indent=1))
    elif form == "markdown":
        print("\n\n".join(table.markdown() for table in tables))
    else:
        console = Console()
        # In a pipe rich assumes 80 columns, which would wrap the cells.
        if not console.is_terminal:
            console = Console(width=200)
        for table in tables:
            console.print(table.rich())
            for note in table.notes:
                console.print(_text(f"- {note}"), soft_wrap=True)
            console.print()


def write_json(path: str, data: dict) -> None:
    """Write ``data`` to a JSON file; create its folder if needed."""
    files.write_json(path, data, indent=1)


def write_figure(path: str | Path, figure: Any, **kwargs: Any) -> None:
    """Write a matplotlib figure in the format of the file's suffix.

    Args:
        path: Image file to write.
        figure: The figure.
        **kwargs: Arguments of ``savefig``.
    """
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:].lower(), **kwargs)


class ReportError(OdiseError):
    """A results file is missing, damaged, or was not written by tools/test.py."""


def find_reports(places: Sequence[str | Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the JSON files of tools/test.py; other JSON files in folders are skipped.

    Args:
        places: JSON files, or folders to search.

    Yields:
        The file and its content.

    Raises:
        ReportError: A place does not exist, a named file was not written by tools/test.py, or a
            file is damaged.
    """
    seen = set()
    for place in map(Path, places):
        if not place.exists():
            raise ReportError(
                f"no file or folder {place}; pass work directories, or JSON files of tools/test.py"
            )
        found = [place] if place.is_file() else sorted(place.rglob("*.json"))
        for file in filter(Path.is_file, found):  # reading a named pipe would block
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            try:
                content = files.read_json(file, ReportError, "results file")
            except ReportError as err:
                if place.is_file() or file.name in ("result.json", "results.json"):
                    raise ReportError(
                        f"{printable(file)} is damaged ({err}); run tools/test.py again"
                    ) from err
                continue
            content = rename_recorded_keys(content)
            if isinstance(content, dict) and {"sets", "config", "random_weights"} <= set(content):
                _check_report(content, file)
                yield file, content
            elif place.is_file():
                raise ReportError(
                    f"{printable(file)} was not written by tools/test.py --out FILE.json"
                )


def _check_report(content: dict, file: Path) -> None:
    """Check the types of all fields that are used, as the file may come from anywhere."""
    config, sets = content["config"], content["sets"]
    valid = (
        isinstance(config, dict)
        and is_text(config.get("file"))
        and isinstance(config.get("options", {}), dict)
        and isinstance(content.get("checkpoint"), dict | None)
        and isinstance(sets, dict)
        and all(map(_is_result, sets.values()))
    )
    if not valid:
        raise ReportError(
            f"{printable(file)} is damaged (fields have other types than tools/test.py writes); "
            "run tools/test.py again"
        )


def _is_result(found: Any) -> bool:
    """Return whether a value is a valid entry of ``sets``."""
    metrics = found.get("metrics") if isinstance(found, dict) else None
    return (
        isinstance(metrics, dict)
        and all(value is None or is_number(value) for value in metrics.values())
        and isinstance(found.get("images", 0), int)
        and isinstance(found.get("limit"), int | None)
        and isinstance(found.get("subsets", {}), dict)
    )
