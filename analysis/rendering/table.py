"""A table in four forms: CSV, Markdown, Typst and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from analysis.rendering.escaping import csv_text, latex, markdown, typst
from analysis.rendering.text import DASH, TABLE_FORMS, interval, number, write

# Where a long name may be broken: before a capital.
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True)
class Measured:
    """A measured cell: `text` for readers; the CSV has value, low and high in three columns."""

    value: float
    low: float
    high: float
    text: str


Cell = str | float | int | None | Measured


@dataclass(frozen=True)
class Table:
    """`rows` of cells under `columns`; `note` says what the measured side is.

    machines: of a table with blocks of several machines, the machine of each row; else empty.
    """

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    note: str = ""
    machines: tuple[str, ...] = ()

    def to_csv(self) -> str:
        """Numbers at full precision; a measured column is followed by its low and high."""
        wide = [
            any(isinstance(row[i], Measured) for row in self.rows) for i in range(len(self.columns))
        ]
        head: list[str] = ["Machine"] if self.machines else []
        for name, bounded in zip(self.columns, wide, strict=True):
            head += [name, f"{name} low", f"{name} high"] if bounded else [name]
        lines = [head]
        for place, row in enumerate(self.rows):
            line: list = [self.machines[place]] if self.machines else []
            for cell, bounded in zip(row, wide, strict=True):
                line += _plain(cell) if bounded else _plain(cell)[:1]
            lines.append(line)
        return csv_text(lines)

    def to_markdown(self) -> str:
        """A pipe table with the caption above and the note below; a line heads each block."""
        align = ["---" if left else "---:" for left in self._left()]
        lines = [f"**{markdown(self.caption)}**", "", _pipes(map(markdown, self.columns))]
        lines.append(_pipes(align))
        for machine, row in self._headed():
            if machine:
                lines.append(_pipes([f"*{markdown(machine)}*", *[""] * (len(self.columns) - 1)]))
            lines.append(_pipes(markdown(shown(cell)) for cell in row))
        if self.note:
            lines += ["", markdown(self.note)]
        return "\n".join(lines) + "\n"

    def to_typst(self) -> str:
        """A `figure(table(...))`; strings only, so no cell is read as markup."""
        align = ", ".join("left" if left else "right" for left in self._left())
        head = ", ".join(typst(_broken(name)) for name in self.columns)
        body = []
        for machine, row in self._headed():
            if machine:
                spans = f"colspan: {len(self.columns)}, align: left, inset: (top: 4pt, bottom: 2pt)"
                # A header, so that none stands alone at the foot of a page.
                named = f"table.cell({spans}, emph({typst(machine)}))"
                body.append(f"  table.header(level: 2, {named}),")
            # A name of many words may break where its column is narrow.
            texts = (_CAMEL.sub("\u200b", shown(cell)) for cell in row)
            body.append(f"  {', '.join(map(typst, texts))},")
        caption = f"{self.caption}. {self.note}" if self.note else f"{self.caption}."
        return "\n".join(
            [
                f"#figure(kind: table, caption: {typst(caption)}, table(",
                f"  columns: {len(self.columns)}, align: ({align},),",
                "  table.hline(),",
                f"  table.header({head}),",
                "  table.hline(stroke: 0.4pt),",
                *body,
                "  table.hline(),",
                "))",
                "",
            ]
        )

    def to_latex(self, label: str) -> str:
        """A `table` to paste anywhere, with caption and label; no cell is read as markup."""
        align = "".join("l" if left else "r" for left in self._left())
        caption = f"{self.caption}. {self.note}" if self.note else f"{self.caption}."
        body = []
        for machine, row in self._headed():
            if machine:
                spans = rf"\multicolumn{{{len(self.columns)}}}{{l}}{{\emph{{{latex(machine)}}}}}"
                body.append(rf"  {spans} \\")
            body.append(f"  {_ampersands(map(shown, row))}")
        return "\n".join(
            [
                r"% Needs \usepackage{booktabs}.",
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{latex(caption)}}}",
                rf"\label{{tab:{label}}}",
                rf"\begin{{tabular}}{{{align}}}",
                r"\toprule",
                f"  {_ampersands(self.columns)}",
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def _headed(self) -> Iterator[tuple[str, tuple[Cell, ...]]]:
        """Each row, with the machine whose block it begins or ""."""
        before = ""
        for place, row in enumerate(self.rows):
            machine = self.machines[place] if self.machines else ""
            yield (machine if machine != before else ""), row
            before = machine

    def _left(self) -> list[bool]:
        """Columns that hold words only stand left."""
        return [
            i == 0 or all(isinstance(row[i], str) and not _is_figure(row[i]) for row in self.rows)
            for i in range(len(self.columns))
        ]


def save(table: Table, stem: Path) -> str:
    """Write `stem` in every form; returns the Markdown, for a notebook to show."""
    texts = (table.to_csv(), table.to_markdown(), table.to_typst(), table.to_latex(stem.name))
    for suffix, text in zip(TABLE_FORMS, texts, strict=True):
        write(stem.parent / f"{stem.name}.{suffix}", text)
    return table.to_markdown()


def shown(cell: Cell) -> str:
    """The text of a cell; what is not known is an en dash."""
    if cell is None:
        return DASH
    if isinstance(cell, Measured):
        return cell.text
    return cell if isinstance(cell, str) else number(cell)


def measured(value: float, low: float, high: float, form: str | None = None) -> Measured:
    """The cell of a value with its interval; `form` as in `text.interval`."""
    return Measured(float(value), float(low), float(high), interval(value, low, high, form))


def brief(cell: Cell) -> Cell:
    """A measured cell whose interval only the CSV has, for tables with many columns."""
    if not isinstance(cell, Measured):
        return cell
    return Measured(cell.value, cell.low, cell.high, number(cell.value))


def _is_figure(text: str) -> bool:
    return text == DASH or text[:1].isdigit()


def _plain(cell: Cell) -> list:
    if isinstance(cell, Measured):
        return [cell.value, cell.low, cell.high]
    return ["" if cell in (None, DASH) else cell, "", ""]


def _broken(name: str) -> str:
    """A heading in lines: units and what is published or measured under what it is."""
    lines = re.sub(r" (?=\()|(?<=\w) (?=published|measured)|(?<=Weight of) ", "\n", name)
    return _CAMEL.sub("\u200b", lines)


def _ampersands(cells) -> str:
    # In braces: a row that starts with a bracket would be read as an option of the row before.
    return (
        " & ".join(f"{{{text}}}" if text[:1] in "[*" else text for text in map(latex, cells))
        + r" \\"
    )


def _pipes(cells) -> str:
    return "| " + " | ".join(cells) + " |"
