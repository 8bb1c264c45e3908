"""Sessions: log in, log out, stay logged in."""

from typing import Any

from marshmallow import Schema, ValidationError, fields, pre_load, validate

from api import addresses, auth
from api.dialect import EXECUTOR
from api.endpoint import Context, Group, Role
from storage import logins, sessions
from storage.errors import Denied, Invalid, InvalidCredentials, TooMany, Unauthenticated
from storage.identity import ROLE_WORDS
from storage.passwords import MAX_LENGTH
from storage.users import User

group = Group("Auth", "/api/auth", EXECUTOR)

EXPIRES_IN = "24h"


class Login(Schema):
    """The name of an account, by `email` or `username`, and its password."""

    email = fields.String(validate=validate.Length(1, 320))
    username = fields.String(validate=validate.Length(1, 320))
    password = fields.String(required=True, validate=validate.Length(1, MAX_LENGTH))

    @pre_load
    def _names_somebody(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        if "email" in data and "username" in data:
            raise ValidationError("Give either email or username.", "username")
        if "email" not in data and "username" not in data:
            raise ValidationError("Missing data for required field.", "email")
        return data


class SessionUser(Schema):
    """Who a session belongs to."""

    id = fields.String(required=True)
    email = fields.String(required=True)
    username = fields.String(required=True)
    role = fields.String(required=True, validate=validate.OneOf(sorted(ROLE_WORDS.values())))


class Session(Schema):
    """A new session."""

    token = fields.String(required=True)
    user = fields.Nested(SessionUser, required=True)
    expiresIn = fields.String(required=True)


class Farewell(Schema):
    """That the session has ended."""

    message = fields.String(required=True)


def begun(token: str, user: User) -> dict[str, Any]:
    """Return what tells a client of its new session."""
    shown = {"id": user.id, "email": user.email, "username": user.username, "role": ROLE_WORDS[user.role]}
    return {"token": token, "user": shown, "expiresIn": EXPIRES_IN}


@group.endpoint(
    "POST /login",
    role=Role.PUBLIC,
    body=Login(),
    returns=Session(),
    body_limit_bytes=16 * 1024,
    raises=(Invalid, InvalidCredentials, TooMany),
)
async def login(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Log in with an email or a username and a password.

    The token is good for 24 hours; a browser gets it as the cookie `auth_token` too. After 5 failures in a
    minute for one account from one address, 20 from one address, or 100 in 15 minutes for one account, logins
    are refused for a while.
    """
    store, req = context.store, context.request
    peer = addresses.counted_as(addresses.peer(req, store.settings))
    user = await logins.login(store, body.get("email") or body["username"], body["password"], peer)
    token = await sessions.issue(store, user)
    if context.response is not None:
        auth.set_session(req, context.response, store, token)
    return begun(token, user)


@group.endpoint(
    "POST /logout", role=Role.VIEWER, returns=Farewell(), raises=(Unauthenticated, Denied, Invalid)
)
async def logout(context: Context) -> dict[str, str]:
    """End the session that this request came by, at once and everywhere, and take its cookie back.

    An API key has no session to end; it is revoked with `DELETE /api/keys/{id}`.
    """
    if not context.caller.family:
        raise Invalid("An API key has no session to end; revoke it with DELETE /api/keys/{id}.")
    await sessions.revoke(context.store, context.caller)
    if context.response is not None:
        auth.clear_session(context.request, context.response, context.store)
    return {"message": "Logged out successfully"}


@group.endpoint("POST /refresh", role=Role.SELF, returns=Session(), raises=(Unauthenticated, Denied))
async def refresh(context: Context) -> dict[str, Any]:
    """Trade a session's token, in the Authorization header or the cookie, for a new one.

    Works once for each token, and until 7 days after it expired. A token that is traded in a second time has
    been copied: every token of the same login ends. None works after a change of password or role.
    """
    store, req = context.store, context.request
    presented = auth.credential(req)
    if presented is None or presented.by not in {"bearer", "cookie"}:
        raise Unauthenticated("Send the session's token in the Authorization header or the cookie.")
    if presented.by == "cookie" and not auth.came_from_us(req, store):
        raise Denied("A session cookie counts here only with our own Origin.")
    token, user = await sessions.refresh(store, presented.secret)
    if presented.by == "cookie" and context.response is not None:
        auth.set_session(req, context.response, store, token)
    return begun(token, user)
