"""Filters over metadata, as a mapping in the form that vector databases share, compiled to SQL.

`{"source": "a.pdf"}` asks for equality, `{"page": {"$gte": 3, "$lt": 9}}` for a range; several keys must all
hold. Operators: $eq $ne $gt $gte $lt $lte $in $nin $contains $icontains $exists, and between filters $and $or $not.
A value that is missing satisfies only $ne, $nin and `{"$exists": False}`. Keys are those of `Hit.metadata`, and `id`, the
passage's own; `metadata.id` is a key `id` in the metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Filter = Mapping[str, Any]
Compiled = tuple[str, list[Any]]  # a condition in SQL, and its parameters
Operator = Callable[[str, Any], Compiled]

CASEFOLD = "casefold"  # a function that the database is given

_COLUMNS = {  # where a chunk does not say where it stands, its metadata may
    "source": "nullif(source, '')",
    "page": "page",
    "start": """CASE WHEN "end" > "start" THEN "start" END""",
    "end": """CASE WHEN "end" > "start" THEN "end" END""",
}


def to_sql(where: Filter) -> Compiled:
    """Return a condition over the table of chunks, and its parameters.

    Raises:
        ValueError: an operator is unknown, or a value is of no use to it.
    """
    if not isinstance(where, Mapping):
        raise ValueError(f"a filter must be a mapping, got {type(where).__name__}")
    conditions, parameters = ["1"], []
    for key, wanted in where.items():
        condition, values = _JOINS[key](wanted) if key in _JOINS else _field(key, wanted)
        conditions.append(condition)
        parameters += values
    return f"({' AND '.join(conditions)})", parameters


def _joined(word: str) -> Callable[[Any], Compiled]:
    def join(filters: Any) -> Compiled:
        if not _is_list(filters) or not filters:
            raise ValueError(f"${word.lower()} takes a list of filters, got {filters!r}")
        compiled = [to_sql(one) for one in filters]
        return (
            f"({f' {word} '.join(condition for condition, _ in compiled)})",
            [value for _, values in compiled for value in values],
        )

    return join


def _negated(where: Any) -> Compiled:
    condition, parameters = to_sql(where)
    return f"NOT coalesce({condition}, 0)", parameters


_JOINS = {"$and": _joined("AND"), "$or": _joined("OR"), "$not": _negated}


def _field(key: str, wanted: Any) -> Compiled:
    if key.startswith("$"):
        raise ValueError(f"unknown filter operator {key!r}; there are {', '.join(sorted(_JOINS))}")
    conditions, parameters = ["1"], []
    for operator, value in (wanted if isinstance(wanted, Mapping) else {"$eq": wanted}).items():
        if operator not in _OPERATORS:
            raise ValueError(
                f"unknown filter operator {operator!r}; there are {', '.join(sorted(_OPERATORS))}"
            )
        condition, values = _OPERATORS[operator](key, value)
        conditions.append(condition)
        parameters += values
    return f"({' AND '.join(conditions)})", parameters


def _value(key: str) -> Compiled:
    if key == "id":
        return "id", []
    in_metadata = "(SELECT value FROM json_each(metadata) WHERE key = ?)"
    if key == "metadata.id":
        return in_metadata, ["id"]
    return (f"coalesce({_COLUMNS[key]}, {in_metadata})" if key in _COLUMNS else in_metadata), [key]


def _equal(key: str, wanted: Any) -> Compiled:
    value, parameters = _value(key)
    if wanted is None:
        return f"{value} IS NULL", parameters
    return f"coalesce({value} = ?, 0)", [*parameters, _scalar(wanted)]


def _compared(sign: str) -> Operator:
    def compare(key: str, wanted: Any) -> Compiled:
        value, parameters = _value(key)
        is_text = int(isinstance(wanted, str))  # SQL would order all texts after all numbers
        return (
            f"coalesce((typeof({value}) = 'text') = {is_text} AND {value} {sign} ?, 0)",
            [*parameters, *parameters, _scalar(wanted)],
        )

    return compare


def _among(key: str, wanted: Any) -> Compiled:
    if not _is_list(wanted):
        raise ValueError(f"$in and $nin take a list of values, got {wanted!r}")
    value, parameters = _value(key)
    return (
        f"coalesce({value} IN (SELECT value FROM json_each(?)), 0)",
        [*parameters, json.dumps([_scalar(one) for one in wanted])],
    )


def _contains(key: str, wanted: Any) -> Compiled:
    """Hold where a list has the value as an element, or a text has it as a part."""
    wanted = _scalar(wanted)
    if key == "id" or key in _COLUMNS:
        value, parameters = _value(key)
        return f"coalesce(instr({value}, ?) > 0, 0)", [*parameters, wanted]
    key = "id" if key == "metadata.id" else key
    condition = (
        "EXISTS (SELECT 1 FROM json_each(metadata) AS entry WHERE entry.key = ? AND CASE entry.type "
        "WHEN 'array' THEN EXISTS (SELECT 1 FROM json_each(entry.value) AS element WHERE element.value = ?) "
        "WHEN 'text' THEN instr(entry.value, ?) > 0 ELSE 0 END)"
    )
    if key == "headings":
        condition = f"({condition} OR EXISTS (SELECT 1 FROM json_each(headings) WHERE value = ?))"
        return condition, [key, wanted, wanted, wanted]
    return condition, [key, wanted, wanted]


def _contains_in_any_case(key: str, wanted: Any) -> Compiled:
    """Hold where a text has the value as a part, in upper or lower case."""
    if not _is_unicode(wanted):
        raise ValueError(f"$icontains takes a text, got {wanted!r}")
    value, parameters = _value(key)
    return f"coalesce(instr({CASEFOLD}({value}), ?) > 0, 0)", [*parameters, wanted.casefold()]


def _exists(key: str, wanted: Any) -> Compiled:
    value, parameters = _value(key)
    return f"{value} IS {'NOT ' if wanted else ''}NULL", parameters


def _inverse(operator: Operator) -> Operator:
    def negate(key: str, wanted: Any) -> Compiled:
        condition, parameters = operator(key, wanted)
        return f"NOT ({condition})", parameters

    return negate


_OPERATORS: dict[str, Operator] = {
    "$eq": _equal,
    "$ne": _inverse(_equal),
    "$gt": _compared(">"),
    "$gte": _compared(">="),
    "$lt": _compared("<"),
    "$lte": _compared("<="),
    "$in": _among,
    "$nin": _inverse(_among),
    "$contains": _contains,
    "$icontains": _contains_in_any_case,
    "$exists": _exists,
}


def _scalar(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    is_right = (
        (isinstance(value, int) and -(2**63) <= value < 2**63)
        or (isinstance(value, float) and math.isfinite(value))
        or _is_unicode(value)
    )
    if not is_right:
        raise ValueError(f"a filter compares texts and finite numbers of 64 bits, got {value!r}")
    return value


def _is_unicode(value: Any) -> bool:
    try:
        str.encode(value)
    except (TypeError, UnicodeEncodeError):
        return False
    return True


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes)
