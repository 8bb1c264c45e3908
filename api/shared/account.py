"""The caller's own account: who am I, and the very first one."""

from http import HTTPStatus
from typing import Any

from marshmallow import Schema, fields, validate

from api import auth
from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, Role
from api.shared.auth import Session, begun
from storage import sessions, users
from storage.errors import Conflict, Denied, Invalid, Unauthenticated
from storage.identity import LADDER, ROLE_WORDS
from storage.passwords import MAX_LENGTH, MIN_LENGTH

group = Group("Account", "/api/auth", CONTEXTBAY)


class Setup(Schema):
    """The first admin."""

    username = fields.String(required=True, validate=validate.Regexp(rf"^{users.USERNAME.pattern}\Z"))
    email = fields.Email(required=True, validate=validate.Length(max=320))
    password = fields.String(required=True, validate=validate.Length(MIN_LENGTH, MAX_LENGTH))


class Me(Schema):
    """Who is asking."""

    id = fields.String(required=True)
    username = fields.String(required=True)
    email = fields.String(required=True)
    role = fields.String(required=True, validate=validate.OneOf(list(LADDER)))
    roleName = fields.String(required=True, validate=validate.OneOf(sorted(ROLE_WORDS.values())))
    kind = fields.String(required=True, validate=validate.OneOf(["user", "key"]))
    keyId = fields.String(required=True, allow_none=True)
    keyName = fields.String(required=True, allow_none=True)


@group.endpoint("GET /me", role=Role.VIEWER, returns=Me(), raises=(Unauthenticated, Denied))
async def me(context: Context) -> dict[str, Any]:
    """Get the user behind the session or the API key, and the role that it has here.

    A key's role is its own or its owner's, whichever is less.
    """
    caller = context.caller
    user = await users.get(context.store, str(caller.user_id))
    by_key = caller.kind == "key"
    return {
        "id": user.id,
        "username": user.username,
        "email": user.email,
        "role": caller.role,
        "roleName": ROLE_WORDS[caller.role],
        "kind": caller.kind,
        "keyId": caller.id if by_key else None,
        "keyName": caller.name if by_key else None,
    }


class SetupState(Schema):
    """Whether there is nobody yet, and whether who asks is somebody."""

    needed = fields.Boolean(required=True)
    signedIn = fields.Boolean(required=True)


@group.endpoint("GET /setup", role=Role.PUBLIC, returns=SetupState())
async def setup_state(context: Context) -> dict[str, bool]:
    """Tell whether this installation still waits for its first admin, and whether you are signed in."""
    known = context.identity is not None
    return {"needed": not known and not await users.any_exist(context.store), "signedIn": known}


@group.endpoint(
    "POST /setup",
    role=Role.PUBLIC,
    body=Setup(),
    returns=Session(),
    status=HTTPStatus.CREATED,
    body_limit_bytes=16 * 1024,
    raises=(Invalid, Denied, Conflict),
)
async def setup(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Create the first admin of an installation that has no user yet, and log in as it. Works once."""
    user = await users.create_first(context.store, **body)
    token = await sessions.issue(context.store, user)
    if context.response is not None:
        auth.set_session(context.request, context.response, context.store, token)
    return begun(token, user)
