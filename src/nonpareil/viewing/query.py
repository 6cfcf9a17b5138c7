"""What a user asks of a table of groups, read from an address and answered by SQL with parameters."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from nonpareil.errors import DataError
from nonpareil.setting_types import nearest
from nonpareil.viewing.database import READ, pattern_of
from nonpareil.viewing.fields import Field, checked_reward, default_reward, fields_of, named_rewards
from nonpareil.viewing.index import GroupIndex

PAGE = 50
PREVIEW = 240
"""Characters of a prompt in a table."""
OPERATORS = {
    "atleast": "at least",
    "atmost": "at most",
    "is": "is",
    "not": "is not",
    "has": "contains",
    "null": "is null",
    "known": "is not null",
}
_LONGEST = 1000
_MOST_CONDITIONS = 8


@dataclass(frozen=True)
class Condition:
    """One filter: a field's key, an operator, a value as text."""

    field: str
    operator: str
    value: str = ""


@dataclass(frozen=True)
class GroupQuery:
    """Which groups, in which order, and which page of them."""

    search: str = ""
    completions: bool = False
    """Whether completions are searched besides prompts and ids."""
    conditions: tuple[Condition, ...] = ()
    sort: str = ""
    """A field's key; empty for the order drawn."""
    descending: bool = True
    reward: str | None = None
    pair: tuple[str, str] | None = None
    page: int = 1

    def address(self, **changes: Any) -> str:
        """The part of an address behind the question mark, with changes."""
        query = replace(self, **changes)
        parts: list[tuple[str, str]] = []
        parts += [("q", query.search)] if query.search else []
        parts += [("texts", "1")] if query.completions else []
        for each in query.conditions:
            parts += [("field", each.field), ("op", each.operator), ("value", each.value)]
        parts += [("sort", query.sort), ("dir", "down" if query.descending else "up")] if query.sort else []
        parts += [("reward", query.reward)] if query.reward is not None else []
        parts += [("first", query.pair[0]), ("second", query.pair[1])] if query.pair else []
        parts += [("page", str(query.page))] if query.page > 1 else []
        return urlencode(parts)


def read_query(parameters: Any, index: GroupIndex) -> GroupQuery:
    """What an address asks (`parameters` is Starlette's multi-dict).

    Raises:
        DataError: a field, reward, operator or number that cannot be; naming it.
    """
    reward = parameters.get("reward")
    reward = default_reward(index) if reward is None else checked_reward(index, reward)
    query = GroupQuery(
        search=_short(parameters.get("q", "").strip()),
        completions=parameters.get("texts") == "1",
        sort=parameters.get("sort", ""),
        descending=parameters.get("dir", "down") != "up",
        reward=reward,
        pair=_pair(parameters, index),
        page=page_number(parameters.get("page", "1")),
    )
    fields = fields_of(index, query.reward, query.pair)
    if query.sort:
        _known(fields, query.sort)
    given = zip(*(parameters.getlist(each) for each in ("field", "op", "value")), strict=False)
    conditions = [Condition(field, operator, _short(value)) for field, operator, value in given if field]
    if len(conditions) > _MOST_CONDITIONS:
        raise DataError(f"{len(conditions)} filters are more than {_MOST_CONDITIONS}; remove some")
    for each in conditions:
        _condition(_known(fields, each.field), each)
    return replace(query, conditions=tuple(conditions))


def _short(value: str) -> str:
    if len(value) > _LONGEST:
        raise DataError(f"a text of {len(value)} characters is too long to look for; give {_LONGEST} at most")
    return value


def page_number(value: str) -> int:
    """A page's number in an address, from 1.

    Raises:
        DataError: it is none.
    """
    number = whole_number(value, "page")
    if not number:
        raise DataError(f"page={value!r} must be a whole number from 1")
    return number


def whole_number(value: str | None, name: str) -> int | None:
    """A number in an address, from 0; None where there is none.

    Raises:
        DataError: it is none.
    """
    if not value:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise DataError(f"{name}={value[:20]!r} must be a whole number from 0")
    return int(value)


def _pair(parameters: Any, index: GroupIndex) -> tuple[str, str] | None:
    names = named_rewards(index)
    first, second = parameters.get("first"), parameters.get("second")
    if first is not None and second is not None:
        return checked_reward(index, first), checked_reward(index, second)
    return (names[0], names[1]) if len(names) > 1 else None


def _known(fields: Mapping[str, Field], key: str) -> Field:
    if key not in fields:
        raise DataError(f"no field is called {key[:80]!r} here{nearest(key[:80], fields, quoted=True)}")
    return fields[key]


def _condition(field: Field, asked: Condition) -> tuple[str, list[Any]]:
    """SQL and its parameters."""
    if asked.operator not in OPERATORS:
        raise DataError(f"op={asked.operator[:40]!r} must be one of {', '.join(OPERATORS)}")
    if asked.operator in ("null", "known"):
        return f"({field.sql}) IS {'NOT ' if asked.operator == 'known' else ''}NULL", []
    if asked.operator == "has":
        return f"contains(lower(CAST({field.sql} AS VARCHAR)), lower(?))", [asked.value]
    sign = {"atleast": ">=", "atmost": "<=", "is": "=", "not": "IS DISTINCT FROM"}[asked.operator]
    if field.kind == "text":
        return f"({field.sql}) {sign} ?", [asked.value]
    try:
        number = int(asked.value) if field.kind == "whole" and asked.value.isdigit() else float(asked.value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or abs(number) >= 2**63:
        raise DataError(f"{field.label}: {asked.value[:40]!r} is no number")
    return f"({field.sql}) {sign} ?", [number]


@dataclass(frozen=True)
class Page:
    """The groups of one page."""

    fields: dict[str, Field]
    rows: list[dict[str, Any]]
    """`shard`, `row`, `prompt_id`, `prompt` (its beginning), and each field by its key."""
    count: int
    """Of all pages together."""

    @property
    def pages(self) -> int:
        """How many there are; 1 at least."""
        return max(1, -(-self.count // PAGE))


def groups_of(index: GroupIndex, query: GroupQuery, limit: int = PAGE) -> Page:
    """The groups that a query asks for: those of its page, and how many there are in all."""
    fields = fields_of(index, query.reward, query.pair)
    where, values = _where(index, query, fields)
    cursor = index.cursor()
    count = cursor.execute(f"SELECT count(*) FROM {index.table} WHERE {where}", values).fetchone()[0]
    # Of the page's rows alone are all fields computed.
    keys = f"SELECT shard, row FROM {index.table} WHERE {where} ORDER BY {_order(query, fields)} LIMIT ? OFFSET ?"
    shown = ", ".join(f"{field.sql} AS f{place}" for place, field in enumerate(fields.values()))
    found = cursor.execute(
        f"WITH page AS MATERIALIZED ({keys}) SELECT shard, row, prompt_id, left(prompt, {PREVIEW + 1}), {shown} "
        f"FROM {index.table} SEMI JOIN page USING (shard, row) ORDER BY {_order(query, fields)}",
        [*values, limit, (query.page - 1) * limit],
    ).fetchall()
    names = ["shard", "row", "prompt_id", "prompt", *fields]
    return Page(fields, [dict(zip(names, row, strict=True)) for row in found], count)


def neighbours(index: GroupIndex, query: GroupQuery, shard: str, row: int) -> dict[str, Any]:
    """The groups before and after one in the order asked for, as `before` and `after` (shard, row) or None.

    `place` is its own, from 1, and `count` how many there are; both None where it is none of those asked for.
    """
    fields = fields_of(index, query.reward, query.pair)
    where, values = _where(index, query, fields)
    order = _order(query, fields)
    found = (
        index.cursor()
        .execute(
            f"SELECT * FROM (SELECT shard, row, row_number() OVER w, count(*) OVER (), lag(shard) OVER w, "
            f"lag(row) OVER w, lead(shard) OVER w, lead(row) OVER w FROM {index.table} WHERE {where} "
            f"WINDOW w AS (ORDER BY {order})) WHERE shard = ? AND row = ?",
            [*values, shard, row],
        )
        .fetchone()
    )
    if found is None:
        return {"place": None, "count": None, "before": None, "after": None}
    before, after = (found[4], found[5]), (found[6], found[7])
    return {
        "place": found[2],
        "count": found[3],
        "before": None if before[0] is None else before,
        "after": None if after[0] is None else after,
    }


def _order(query: GroupQuery, fields: Mapping[str, Field]) -> str:
    drawn = "shard, row"
    if not query.sort:
        return drawn
    return f"{fields[query.sort].sql} {'DESC' if query.descending else 'ASC'} NULLS LAST, {drawn}"


def _where(index: GroupIndex, query: GroupQuery, fields: Mapping[str, Field]) -> tuple[str, list[Any]]:
    parts, values = ["true"], []
    for each in query.conditions:
        sql, more = _condition(fields[each.field], each)
        parts.append(sql)
        values += more
    if query.search:
        found = ["contains(lower(prompt), lower(?))", "contains(lower(prompt_id), lower(?))"]
        values += [query.search] * 2
        if query.completions and (paths := index.paths()):
            found.append(
                f"(shard, row) IN (SELECT (parse_filename(filename), file_row_number) FROM {READ} "
                "WHERE len(list_filter(completions, lambda text: contains(lower(text), lower(?)))) > 0)"
            )
            values += [[pattern_of(path) for path in paths], query.search]
        parts.append(f"({' OR '.join(found)})")
    return " AND ".join(parts), values


def hidden(query: GroupQuery, without: Sequence[str] = ()) -> list[tuple[str, str]]:
    """The query as names and values for a form that changes something else."""
    from urllib.parse import parse_qsl

    pairs = parse_qsl(query.address(page=1), keep_blank_values=True)
    return [(key, value) for key, value in pairs if key not in without]
