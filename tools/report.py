"""Tables for the terminal, as markdown and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

FORMATS = ("table", "markdown", "json")


@dataclass
class Table:
    """A table; the first column is left-aligned, the others right.

    Attributes:
        title: what it is about.
        columns: headings.
        rows: cells as they are shown; an empty row is a line.
        notes: sentences below it.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rich(self) -> RichTable:
        """For ``rich``."""
        table = RichTable(title=self.title, title_justify="left")
        for index, name in enumerate(self.columns):
            table.add_column(name, justify="right" if index else "left")
        for row in self.rows:
            if row:
                table.add_row(*row)
            else:
                table.add_section()
        return table

    def markdown(self) -> str:
        """As markdown."""
        lines = [f"### {self.title}", "", _line(self.columns)]
        lines.append(_line([":--", *["--:"] * (len(self.columns) - 1)]))
        lines += [_line(row) for row in self.rows if row]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def show(tables: Sequence[Table], data: dict, form: str) -> None:
    """Print tables in one of :data:`FORMATS`; ``data`` is what JSON gets."""
    if form == "json":
        print(json.dumps(data, indent=1))
    elif form == "markdown":
        print("\n\n".join(table.markdown() for table in tables))
    else:
        console = Console()
        # in a pipe rich assumes 80 columns, which would fold the cells
        if not console.is_terminal:
            console = Console(width=200)
        for table in tables:
            console.print(table.rich())
            for note in table.notes:
                console.print(f"- {note}", soft_wrap=True, highlight=False, markup=False)
            console.print()


def write_json(path: str, data: dict) -> None:
    """Write ``data`` to a file, making its folder."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(data, indent=1) + "\n")
