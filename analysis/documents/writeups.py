"""The write-ups, in the published layout, from numbers, tables, figures and verdicts.

    python -m analysis.documents.writeups NAME --out build/writeups/NAME.md [--build build]

renders `paper/writeups/NAME.md.j2`. A template can call:

    n(key)                            the text of a number
    table(name), figure(name, alt)    those of this experiment, or of another by the whole name
                                      (`backends-worth`); NAME need not be an experiment
    published(id), measured(id)       the published and the measured value of a claim
    over_fused(id)                    what the same comparison gives over fused attention
    verdict(id)                       whether the method, computed exactly, does it, linked to the
                                      ledger; of figures checked against each other, that
    verdict_and_reason(id)            both verdicts with their reasons
    verdicts(section), sections()     the table of claims of one section; all sections
    in_short()                        how many claims there are, and what became of them

An unknown key, name, claim or section fails the build.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jinja2

from analysis.command import command, parser
from analysis.rendering.escaping import address, markdown
from analysis.rendering.numbers import NumbersError, lookup, read
from analysis.rendering.text import DASH, interval, number, read_json, write

TEMPLATES = Path(__file__).resolve().parents[2] / "paper" / "writeups"


class WriteupError(ValueError):
    """A write-up cannot be rendered; the message names the template and what is missing."""


def render(name: str, build: Path, out: Path, templates: Path = TEMPLATES) -> str:
    """The Markdown of write-up `name` from the files in `build`; links are relative to `out`.

    Raises NumbersError on unknown keys; WriteupError on unknown tables, figures, claims and
    sections, on undefined variables and on template errors; either on a missing or broken file.
    """
    page = _Page(name, build, out)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    public = (
        "n",
        "table",
        "figure",
        "published",
        "measured",
        "over_fused",
        "verdict",
        "verdict_and_reason",
        "verdicts",
        "sections",
        "in_short",
    )
    environment.globals |= {word: getattr(page, word) for word in public}
    try:
        return environment.get_template(f"{name}.md.j2").render()
    except jinja2.TemplateNotFound as error:
        raise WriteupError(f"{templates / error.name}: no such template") from None
    except jinja2.TemplateSyntaxError as error:
        raise WriteupError(f"{error.name}:{error.lineno}: {error.message}") from None
    except jinja2.UndefinedError as error:
        raise WriteupError(f"{page.where}: {error.message}") from None


def names(templates: Path = TEMPLATES) -> list[str]:
    """The write-ups that have a template."""
    return sorted(path.name.removesuffix(".md.j2") for path in templates.glob("*.md.j2"))


class _Page:
    """The functions that a template can call."""

    def __init__(self, name: str, build: Path, out: Path):
        self.name, self.build, self.out = name, build, out
        self.where = f"{name}.md.j2"
        self._numbers = read(build / "numbers.json")
        judged = read_json(build / "claims.json", WriteupError)["claims"]
        claims = [claim for claim in judged if claim["writeup"] == name]
        self._claims = {claim["id"]: claim for claim in claims}

    def n(self, key: str) -> str:
        return markdown(lookup(self._numbers, key, self.where))

    def table(self, name: str) -> str:
        """The Markdown of `<write-up>-<name>`, else of the table with that whole name."""
        return self._output("table", "tables", name, "md").read_text(encoding="utf-8").rstrip()

    def figure(self, name: str, alt: str) -> str:
        """A link to the figure `<write-up>-<name>`, else to the one with that whole name."""
        path = self._output("figure", "figures", name, "svg")
        return f"![{markdown(alt)}]({self._link(path)})"

    def _output(self, what: str, folder: str, name: str, suffix: str) -> Path:
        for stem in (f"{self.name}-{name}", name):
            path = self.build / folder / f"{stem}.{suffix}"
            if path.is_file():
                return path
        raise WriteupError(f"{self.where}: {what} {name!r}: no file {path}")

    def _link(self, path: Path) -> str:
        return address(os.path.relpath(path, self.out.parent))

    def in_short(self) -> str:
        """How many claims the write-up has, and how many hold, on each side that is judged."""
        count = {
            word: self.n(f"claims.{self.name}.{word}")
            for side in ("as-published", "method")
            for word in (f"{side}.holds", f"{side}.does-not-hold")
        }
        total, agree = (self.n(f"claims.{self.name}.{word}") for word in ("total", "agrees"))
        contradict = self.n(f"claims.{self.name}.contradicts")
        checked = (
            f"Of its figures checked against each other {agree} agree and {contradict} do not."
        )
        if not any(claim["as_published"] for claim in self._claims.values()):
            return (
                f"Of its {total} claims, which are about the method, {count['method.holds']} hold "
                f"and {count['method.does-not-hold']} do not, by what stands in for the published "
                f"setting; the others are undecided, need a card or were not measured. {checked}"
            )
        return (
            f"Of its {total} claims the published code does {count['as-published.holds']} and "
            f"does not do {count['as-published.does-not-hold']}; of the methods, computed exactly, "
            f"{count['method.holds']} hold and {count['method.does-not-hold']} do not; the others "
            f"are undecided, need a card or were not measured. {checked}"
        )

    def verdict_and_reason(self, claim: str) -> str:
        """`as published **holds** (...); computed exactly **does not hold** (...)`."""
        found = self._claim(claim)
        return "; ".join(
            f"{label} {self._word(found, side)} ({markdown(found[side]['reason'])})"
            for side, label in _SIDES.items()
            if found[side]
        )

    def published(self, claim: str) -> str:
        """The published figure of the claim `<write-up>.<claim>`."""
        return markdown(_bare(self._claim(claim)["published"]))

    def measured(self, claim: str) -> str:
        """The measured value of the claim `<write-up>.<claim>`, an en dash where there is none."""
        return markdown(measured_of(self._claim(claim)))

    def over_fused(self, claim: str) -> str:
        """The value over fused attention, where it was measured over attention that is not."""
        beside = (self._claim(claim)["method"] or {}).get("beside")
        return markdown(measured_text(beside["measured"] if beside else None))

    def verdict(self, claim: str) -> str:
        """The verdict on the claim `<write-up>.<claim>` as a word."""
        found = self._claim(claim)
        return self._word(found, main_side(found))

    def _claim(self, claim: str) -> dict:
        if f"{self.name}.{claim}" not in self._claims:
            raise WriteupError(f"{self.where}: unknown claim {self.name}.{claim}")
        return self._claims[f"{self.name}.{claim}"]

    def _word(self, claim: dict, side: str | None) -> str:
        """A verdict, linked to the claim's row in the ledger, which lists its records."""
        if side is None or claim[side] is None:
            return DASH
        one = claim[side]
        stand_in = f", {markdown(one['stand_in'])}" if one["stand_in"] else ""
        link = f"{self._link(self.build / 'ledger.html')}#{claim['id']}"
        return f"[**{one['verdict']}**{stand_in}]({link})"

    def verdicts(self, section: str) -> str:
        found = [c for c in self._claims.values() if c["section"] == section]
        if not found:
            raise WriteupError(f"{self.where}: no claim of section {section!r}")
        place = "Line" if found[0]["line"][0].isdigit() else "Place"
        lines = [
            f"| {place} | Claim | Published | As published | Computed exactly | Measured | Why |"
        ]
        lines.append("| --- | --- | --- | --- | --- | --- | --- |")
        for claim in found:
            said = (claim["line"], claim["claim"], published_text(claim))
            lines.append("| " + " | ".join((*map(markdown, said), *self._both(claim))) + " |")
        return "\n".join(lines)

    def _both(self, claim: dict) -> tuple[str, str, str, str]:
        """Both verdicts, what was measured, and why, as Markdown."""
        if claim["sort"] == "context":
            return "context", "context", DASH, markdown(claim["note"] or DASH)
        if claim["sort"] == "consistency":
            own = claim["consistency"]
            word = f"its own figures: {self._word(claim, 'consistency')}"
            return word, DASH, DASH, markdown(own["reason"])
        sides = [claim[side] for side in ("as_published", "method") if claim[side]]
        reasons = list(dict.fromkeys(side["reason"] for side in sides))
        words = (self._word(claim, side) for side in ("as_published", "method"))
        return (*words, markdown(measured_of(claim)), markdown("; ".join(reasons)))

    def sections(self) -> list[str]:
        return list(dict.fromkeys(c["section"] for c in self._claims.values()))


_SIDES = {
    "as_published": "as published",
    "method": "computed exactly",
    "consistency": "by its own figures",
}


def main_side(claim: dict) -> str | None:
    """The side that a reader asks for first: the method, else what there is; none of context."""
    found = (side for side in ("method", "consistency", "as_published") if claim[side])
    return next(found, None)


def measured_of(claim: dict) -> str:
    """The measured value of a claim: of the method, else of the replica of what was published."""
    sides = [claim[side] for side in ("method", "as_published") if claim[side]]
    return measured_text(next((side["measured"] for side in sides if side["measured"]), None))


def measured_text(measured: dict | None) -> str:
    """The measured value of a claim, with interval and unit."""
    if measured is None or measured["value"] is None:
        return DASH
    bounds = [measured[b] for b in ("low", "high")]
    value = measured["value"]
    text = number(value) if None in bounds else interval(value, *bounds)
    return _with_unit(text, measured["unit"])


def measured_of_finding(side: dict | None) -> str:
    """What one side of a headline was measured as, and what over fused attention."""
    if side is None or not side["measured"]:
        return DASH
    text = " to ".join(dict.fromkeys(map(measured_text, side["measured"])))
    beside = side["beside"]
    if beside and beside["measured"]:
        text += f"; over {beside['over']} {measured_text(beside['measured'])}"
    return text


def published_text(claim: dict) -> str:
    """The published value of a claim as text, a number with its unit."""
    text = _bare(claim["published"])
    return _with_unit(text, claim["unit"]) if isinstance(claim["published"], int | float) else text


def _bare(value: object) -> str:
    if value is None:
        return DASH
    if isinstance(value, int):
        return f"{value:,}" if value >= 10000 else str(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _with_unit(text: str, unit: str) -> str:
    if unit == "exponent":
        return f"n^{text}"
    return text + {"": "", "x": "×"}.get(unit, f" {unit}")


@command("writeups", WriteupError, NumbersError)
def main(arguments: list[str] | None = None) -> None:
    """Render a write-up."""
    options = parser(main.__doc__)
    options.add_argument("name", choices=names())
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--build", type=Path, default=Path("build"))
    given = options.parse_args(arguments)
    write(given.out, render(given.name, given.build, given.out))


if __name__ == "__main__":
    sys.exit(main())
