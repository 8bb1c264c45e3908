"""Pages of a list: which part is asked for, and the envelope it is answered in."""

from collections.abc import Iterable, Sequence
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate

#: The Pagination section of CMD Executor's page: 100 unless asked otherwise, 1000 at most.
DEFAULT_LIMIT, MOST = 100, 1000


class PageQuery(Schema):
    """Which part of a list: `limit` entries from `offset` on."""

    limit = fields.Integer(
        load_default=DEFAULT_LIMIT,
        validate=validate.Range(1, MOST),
        metadata={"description": "How many entries at most."},
    )
    offset = fields.Integer(
        load_default=0, validate=validate.Range(0, 10**9), metadata={"description": "How many to skip."}
    )


class PageAnswer(Schema):
    """What every page says of itself."""

    total = fields.Integer(required=True)
    limit = fields.Integer(required=True)
    offset = fields.Integer(required=True)
    has_more = fields.Boolean(required=True, data_key="hasMore")


class Words(fields.Field[list[str]]):
    """A query parameter that may be repeated, or hold several words between commas."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> list[str]:
        given = value if isinstance(value, list) else [value]
        words = [word.strip() for each in given for word in str(each).split(",") if word.strip()]
        if len(words) > 16:
            raise ValidationError("At most 16 are accepted.")
        return words


def sort_field(*names: str, default: str) -> fields.String:
    """Return the parameter `sort`: one of `names`, descending with a minus before it."""
    choices = [word for name in names for word in (name, f"-{name}")]
    return fields.String(
        load_default=default,
        validate=validate.OneOf(choices, error="Must be one of: {choices}."),
        metadata={"description": "A minus turns the order around."},
    )


def envelope(key: str, entries: Sequence[Any], total: int, query: dict[str, Any]) -> dict[str, Any]:
    """Return a page under its row's own key and under the Pagination section's `data`."""
    offset = query["offset"]
    return {
        key: entries,
        "data": entries,
        "total": total,
        "limit": query["limit"],
        "offset": offset,
        "has_more": offset + len(entries) < total,
    }


def cut(entries: Iterable[Any], query: dict[str, Any]) -> list[Any]:
    """Return the part of a list in memory that `query` asks for."""
    return list(entries)[query["offset"] : query["offset"] + query["limit"]]
