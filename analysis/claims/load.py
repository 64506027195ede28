"""Reading, expanding and checking `paper/claims.yaml`."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError

from analysis.claims.capacity import Fits
from analysis.claims.claim import Claim, ClaimsFile, Predicate, Subject
from analysis.claims.comparisons import Ordering
from analysis.claims.differences import FastestVaries
from analysis.claims.growth import Growth, RisingSpeedup
from analysis.claims.registry import KINDS
from analysis.claims.schema import (
    CONSISTENCY,
    CONTEXT,
    STRENGTHS,
    UNKNOWN,
    About,
    Card,
    CardName,
    ClaimsError,
    Headline,
    History,
    Mechanism,
    MechanismName,
    Output,
    Shape,
    Strict,
    System,
    Writeup,
)
from analysis.claims.stated_numbers import Arithmetic, Restates
from analysis.claims.wording import comma_separated
from models.registry import VARIANTS

_TABLE = ("for", "columns", "rows", "cells")
_ANNOTATIONS = (
    *("line", "strength", "scope", "subject", "history"),
    *("mechanism", "see", "about", "unit"),
)
_ENTRY = ("id", "section", "claim", "published", "predicate", "note", *_ANNOTATIONS)
_SECTIONS = ("cards", "mechanisms", "systems", "writeups", "headlines")
_PLACE = re.compile(r"\{([\w.-]+)\}")
_LINES = r"\d+(-\d+)?(, \d+(-\d+)?)*"
_PLACES = r"(abstract|(section|table|figure) \d+(\.\d+)?)(, (section|table|figure) \d+(\.\d+)?)*"


class _Annotations(Strict):
    """See `Claim`. line: of the write-up, or several: 17, "17-19", "17, 21"; of a paper its places.

    unit: of a figure whose kind of predicate does not say it.
    """

    line: int | Annotated[str, Field(pattern=rf"^({_LINES}|{_PLACES})$")]
    strength: Literal[STRENGTHS] = "states"
    scope: CardName | None = None
    subject: Literal["class", "method"] = "class"
    history: History | None = None
    mechanism: MechanismName | None = None
    see: list[Output] = []
    about: About | None = None
    unit: str | None = None


class _UniqueKeys(yaml.CSafeLoader):
    def construct_mapping(self, node, deep=False):
        keys = Counter(str(key.value) for key, _ in node.value)
        for key in (k for k, count in keys.items() if count > 1):
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def load(path: Path | str) -> ClaimsFile:
    """Read, expand and validate the claims file.

    Raises ClaimsError on anything not understood: YAML, keys, ids given twice or not there,
    predicate kinds and their arguments, systems, cards, variants, expressions.
    """
    path = Path(path)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise ClaimsError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ClaimsError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict) or sorted(data) != sorted(_SECTIONS):
        got = sorted(data) if isinstance(data, dict) else data
        raise ClaimsError(f"{path}: top level: is {got!r}, expected {comma_separated(_SECTIONS)}")
    context = {name: data[name] for name in _SECTIONS} | {"variants": VARIANTS}
    if UNKNOWN not in data["mechanisms"]:
        raise ClaimsError(f"{path}: mechanisms: {UNKNOWN}: missing")
    cards, mechanisms, systems, headlines = (
        {k: _parse(path, f"{name}.{k}", model, v, context) for k, v in data[name].items()}
        for name, model in (
            *(("cards", Card), ("mechanisms", Mechanism)),
            *(("systems", System), ("headlines", Headline)),
        )
    )
    writeups: dict[str, Writeup] = {}
    claims: dict[str, Claim] = {}
    for name, value in data["writeups"].items():
        entries = value.pop("claims", None) if isinstance(value, dict) else None
        writeups[name] = _parse(path, f"writeups.{name}", Writeup, value, context)
        if not isinstance(entries, list):
            raise ClaimsError(f"{path}: writeups.{name}: claims: expected a list of entries")
        for entry in entries:
            for fields in _expand(path, name, entry, {}, {}):
                claim = _claim(path, name, writeups[name].conditions, fields, context)
                if claim.id in claims:
                    raise ClaimsError(f"{path}: {claim.id}: id: given twice")
                claims[claim.id] = claim
    by_subject = _by_subject(path, claims)
    claims_file = ClaimsFile(
        path=str(path),
        cards=cards,
        mechanisms=mechanisms,
        systems=systems,
        writeups=writeups,
        claims=claims,
        by_subject=by_subject,
        headlines=headlines,
        headline_of=_headline_of(path, headlines, claims),
    )
    for claim in claims.values():
        _check(claims_file, claim)
    return claims_file


def _parse(path, place: str, model: type[Strict], value, context: Mapping, field: str = ""):
    try:
        return model.model_validate(value, context=context)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (*filter(None, [field]), *first["loc"]))) or "entry"
        raise ClaimsError(f"{path}: {place}: {where}: {first['msg']}") from None


def _expand(path, place: str, entry, variables: dict, inherited: dict) -> Iterator[dict]:
    """The claims of an entry: one per row of its table and combination of its loops."""
    if not isinstance(entry, dict):
        raise ClaimsError(f"{path}: {place}: entry: is {entry!r}, expected a mapping")
    place = f"{place}.{entry['id']}" if "id" in entry else place
    for key in entry:
        if key not in _TABLE + _ENTRY:
            raise ClaimsError(f"{path}: {place}: {key}: unknown key")
    columns, loops = entry.get("columns", []), entry.get("for", {})
    for row in entry.get("rows", [[]]):
        if len(row) != len(columns):
            raise ClaimsError(f"{path}: {place}: rows: {row!r} has not {len(columns)} columns")
        for values in itertools.product(*loops.values()):
            known = {**variables, **_pair(columns, row), **_pair(loops, values)}
            given = inherited | {k: v for k, v in entry.items() if k in _ENTRY}
            for cell in entry.get("cells", ()):
                yield from _expand(path, place, cell, known, given)
            if "cells" not in entry:
                fields = {k: _fill(path, place, k, v, known) for k, v in given.items()}
                if fields.get("published", ...) is not None:
                    yield fields


def _pair(names, values) -> dict:
    return dict(zip(names, values, strict=True))


def _fill(path, place: str, field: str, value, variables: Mapping):
    """`value` with every {name} replaced, innermost first; a lone {name} keeps its type."""
    if isinstance(value, dict):
        return {k: _fill(path, place, f"{field}.{k}", v, variables) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(path, place, field, v, variables) for v in value]
    while isinstance(value, str) and (found := _PLACE.search(value)):
        if found[1] not in variables:
            raise ClaimsError(f"{path}: {place}: {field}: no column or loop is called {found[1]!r}")
        new = variables[found[1]]
        value = new if found[0] == value else value.replace(found[0], str(new))
    return value


def _claim(path, writeup: str, conditions: Shape, fields: dict, context: Mapping) -> Claim:
    place = f"{writeup}.{fields.get('id', '(no id)')}"
    for key in ("id", "section", "claim", "predicate"):
        if key not in fields:
            raise ClaimsError(f"{path}: {place}: {key}: missing")
    arguments = dict(fields["predicate"]) if isinstance(fields["predicate"], dict) else {}
    kind = arguments.pop("kind", None)
    if kind not in KINDS:
        known = comma_separated(KINDS)
        raise ClaimsError(f"{path}: {place}: predicate.kind: is {kind!r}, expected one of {known}")
    predicate = _parse(path, place, KINDS[kind], arguments, context, "predicate")
    published = fields.get("published")
    if predicate.needs_figure and not _is_number(published):
        raise ClaimsError(f"{path}: {place}: published: is {published!r}, expected a number")
    more = {k: fields[k] for k in _ANNOTATIONS if k in fields}
    more = _parse(path, place, _Annotations, more, context)
    about = more.about
    if about is not None:
        about = _subject(f"{path}: {place}", writeup, conditions, about, predicate)
    return Claim(
        id=place,
        writeup=writeup,
        section=fields["section"],
        claim=fields["claim"],
        published=published,
        unit=predicate.figure_unit if more.unit is None else more.unit,
        kind=kind,
        predicate=predicate,
        note=fields.get("note"),
        line=str(more.line),
        strength=more.strength,
        scope=more.scope,
        subject=more.subject,
        history=more.history,
        mechanism=more.mechanism,
        see=tuple(more.see),
        about=about,
    )


def _subject(
    place: str, writeup: str, conditions: Shape, about: About, predicate: Predicate
) -> Subject:
    """`about`, completed from the predicate's system and shape, or the write-up's batch."""
    given = about.model_dump(exclude_unset=True)
    if "plot" not in given:
        at = getattr(predicate, "at", Shape())
        derived = {"system": getattr(predicate, "system", None)}
        derived |= {"batch": at.batch, "seq_len": at.seq_len}
        derived = {field: value for field, value in derived.items() if value is not None}
        for field in derived.keys() & given.keys():
            raise ClaimsError(f"{place}: about.{field}: the predicate has it already")
        given = {"batch": conditions.batch} | derived | given
        if "system" not in given:
            raise ClaimsError(f"{place}: about.system: missing: the predicate has none")
    elif set(given) != {"quantity", "plot"}:
        raise ClaimsError(
            f"{place}: about: expected the quantity and the plot, got {comma_separated(given)}"
        )
    return Subject(writeup, **given)


def _by_subject(path, claims: Mapping[str, Claim]) -> dict[Subject, Claim]:
    found: dict[Subject, Claim] = {}
    for claim in claims.values():
        if claim.about is None:
            continue
        if claim.about in found:
            other = found[claim.about].id
            raise ClaimsError(f"{path}: {claim.id}: about: {other} has a figure of the same")
        found[claim.about] = claim
    return found


def _headline_of(
    path, headlines: Mapping[str, Headline], claims: Mapping[str, Claim]
) -> dict[str, str]:
    """The headline of every entry but context; each has one, and decides one at most."""
    found: dict[str, str] = {}
    for name, headline in headlines.items():
        place = f"{path}: headlines.{name}"
        for one in headline.decided_by:
            if one not in claims or claims[one].sort == CONTEXT:
                raise ClaimsError(f"{place}: decided_by: no claim has the id {one!r}")
            if one in found:
                raise ClaimsError(f"{place}: decided_by: {one} decides {found[one]} already")
            found[one] = name
    for name, headline in headlines.items():
        for pattern in headline.groups:
            fitting = [
                one.id
                for one in claims.values()
                if fnmatchcase(one.id, pattern) and one.sort != CONTEXT
            ]
            if not fitting:
                raise ClaimsError(f"{path}: headlines.{name}: groups: nothing fits {pattern!r}")
            for one in fitting:
                if found.setdefault(one, name) != name and one not in _deciding(headlines):
                    raise ClaimsError(
                        f"{path}: headlines.{name}: groups: {one} is in {found[one]} already"
                    )
    lacking = [one.id for one in claims.values() if one.sort != CONTEXT and one.id not in found]
    if lacking and headlines:
        raise ClaimsError(f"{path}: headlines: {lacking[0]} is in none")
    return found


def _deciding(headlines: Mapping[str, Headline]) -> set[str]:
    return {one for headline in headlines.values() for one in headline.decided_by}


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(claims_file: ClaimsFile, claim: Claim) -> None:
    """What needs the whole file: references between claims, and arguments that go together."""
    predicate = claim.predicate

    def fail(field: str, message: str):
        raise ClaimsError(f"{claims_file.path}: {claim.id}: predicate.{field}: {message}")

    for field, other in predicate.references().items():
        if other not in claims_file.claims:
            fail(str(field), f"no claim has the id {other!r}")
        if not _is_number(claims_file.claims[other].published):
            fail(str(field), f"{other} has no published number")
    writeup = claims_file.writeups[claim.writeup]
    where = f"{claims_file.path}: {claim.id}"
    if (writeup.paper is None) != claim.line[0].isdigit():
        kind = "a line" if writeup.paper is None else "a section, table or figure"
        raise ClaimsError(f"{where}: line: is {claim.line!r}, expected {kind}")
    if writeup.card is None and predicate.needs_card:
        raise ClaimsError(f"{where}: the write-up names no card, which {claim.kind} needs")
    for system in predicate.named_systems():
        if claims_file.experiment(claim.writeup, system) is None:
            message = f"neither the write-up nor the system {system!r} names an experiment"
            raise ClaimsError(f"{where}: {message}")
    match predicate:
        case Restates(of=other) if isinstance(claims_file.claims[other].predicate, Restates):
            fail("of", f"{other} restates a figure itself")
        case Restates(of=other) if claims_file.claims[other].sort in (CONTEXT, CONSISTENCY):
            fail("of", f"{other} has no verdicts to restate")
        case Growth(below=below, at_most=most, at_least=least) if [below, most, least].count(
            None
        ) < 2:
            fail("at_least", "expected one of below, at_most and at_least")
        case Growth(figures=None, below=None, at_most=None, at_least=None):
            fail("figures", "missing: expected figures, below, at_most or at_least")
        case FastestVaries(shapes=shapes) | RisingSpeedup(shapes=shapes) if any(
            at.seq_len is None for at in shapes
        ):
            fail("shapes", "expected a seq_len in each")
        case Fits(card=None) if not _is_number(claim.published):
            fail("card", "missing: expected a card, or a published number of MiB")
        case Ordering(order=[_], among=[]):
            fail("order", "expected two systems or more, or some among others")
        case Arithmetic():
            try:
                predicate.sides(claim, claims_file)
            except (ValueError, SyntaxError, TypeError) as error:
                fail("left, right", f"{error}")
