"""API keys, as their owners see and make them."""

from http import HTTPStatus
from typing import Any

from marshmallow import Schema, fields, validate

from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, Role
from api.shared.users import RoleField
from api.times import Time
from storage import api_keys
from storage.api_keys import ApiKey
from storage.errors import Denied, Invalid, NotFound, Unauthenticated
from storage.identity import LADDER

group = Group("API Keys", "/api/keys", CONTEXTBAY)

_GUARDED = (Unauthenticated, Denied)


class NewKey(Schema):
    """A key to create; without `role` it may only read."""

    name = fields.String(required=True, validate=validate.Length(1, 100))
    role = RoleField(load_default="r")


class KeyAnswer(Schema):
    """An API key, without its secret."""

    id = fields.String(required=True)
    name = fields.String(required=True)
    role = fields.String(required=True, validate=validate.OneOf(list(LADDER)))
    prefix = fields.String(required=True)
    scope = fields.String(metadata={"description": "The one dialect it may speak; empty for all."})
    userId = fields.String(required=True, attribute="owner")
    createdAt = Time(required=True, attribute="created_ms")


class NewKeyAnswer(KeyAnswer):
    """A new API key; `key` is its secret, shown this once."""

    key = fields.String(required=True)


class KeyQuery(Schema):
    """Whose keys to list."""

    all = fields.Boolean(load_default=False)


class KeyList(Schema):
    """API keys, the oldest first."""

    keys = fields.List(fields.Nested(KeyAnswer), required=True)
    total = fields.Integer(required=True)


@group.endpoint("GET ", role=Role.VIEWER, query=KeyQuery(), returns=KeyList(), raises=(*_GUARDED, Invalid))
async def list_keys(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """List your API keys, the oldest first; for admins `?all=true` lists everybody's."""
    if query["all"] and context.caller.role != "a":
        raise Denied("Only an admin may list everybody's API keys.")
    owner = None if query["all"] else context.caller.user_id
    found = await api_keys.owned_by(context.store, owner)
    return {"keys": found, "total": len(found)}


@group.endpoint(
    "POST ",
    role=Role.VIEWER,
    body=NewKey(),
    returns=NewKeyAnswer(),
    status=HTTPStatus.CREATED,
    raises=(*_GUARDED, Invalid),
)
async def create_key(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Create an API key that acts for you, with your role or a lesser one. Its secret is shown this once.

    It is sent as `X-API-Key`, or as a Bearer token. One user has at most 100.
    """
    key, secret = await api_keys.create(context.store, context.caller, **body)
    return {**_shown(key), "key": secret}


def _shown(key: ApiKey) -> dict[str, Any]:
    return {name: getattr(key, name) for name in ApiKey.__slots__}


@group.endpoint(
    "DELETE /{key_id}", role=Role.VIEWER, status=HTTPStatus.NO_CONTENT, raises=(*_GUARDED, NotFound)
)
async def revoke_key(context: Context, key_id: str) -> None:
    """Revoke one of your API keys, at once; an admin may revoke anybody's.

    Who comes by a key revokes none that may do more than that one.
    """
    await api_keys.revoke(context.store, context.caller, key_id)
