"""Users, as admins see and change them."""

from http import HTTPStatus
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, Role
from api.times import Time
from storage import users
from storage.errors import Conflict, Denied, Invalid, NotFound, Unauthenticated
from storage.identity import LADDER, ROLE_WORDS
from storage.passwords import MAX_LENGTH, MIN_LENGTH
from storage.users import User

group = Group("Users", "/api/users", CONTEXTBAY)

_GUARDED = (Unauthenticated, Denied)
_LETTERS = {word: letter for letter, word in ROLE_WORDS.items()}


class RoleField(fields.String):
    """A role by its letter or its word; `admin` means `a`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(validate=validate.OneOf(list(LADDER)), **options)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        return (
            _LETTERS.get(value, value) if isinstance(value, str) else super()._deserialize(value, attr, data)
        )


class NewUser(Schema):
    """A user to create; without `role` it may only read."""

    username = fields.String(required=True, validate=validate.Regexp(rf"^{users.USERNAME.pattern}\Z"))
    email = fields.Email(required=True, validate=validate.Length(max=320))
    password = fields.String(required=True, validate=validate.Length(MIN_LENGTH, MAX_LENGTH))
    role = RoleField(load_default="r")


class UserChanges(Schema):
    """What to change of a user; what is not named stays."""

    username = fields.String(validate=validate.Regexp(rf"^{users.USERNAME.pattern}\Z"))
    email = fields.Email(validate=validate.Length(max=320))
    password = fields.String(validate=validate.Length(MIN_LENGTH, MAX_LENGTH))
    role = RoleField()

    @validates_schema
    def _changes_something(self, data: dict[str, Any], **_: Any) -> None:
        if not data:
            raise ValidationError("Name a field to change: username, email, password or role.")


class UserAnswer(Schema):
    """A user, without its password."""

    id = fields.String(required=True)
    username = fields.String(required=True)
    email = fields.String(required=True)
    role = fields.String(required=True, validate=validate.OneOf(list(LADDER)))
    createdAt = Time(required=True, attribute="created_ms")
    updatedAt = Time(required=True, attribute="updated_ms")


class Paging(Schema):
    """Which part of a list to return."""

    limit = fields.Integer(load_default=100, validate=validate.Range(1, 1000))
    offset = fields.Integer(load_default=0, validate=validate.Range(0, 2**53))


class UserList(Schema):
    """Some of the users, the oldest first, and how many there are."""

    users = fields.List(fields.Nested(UserAnswer), required=True)
    total = fields.Integer(required=True)
    limit = fields.Integer(required=True)
    offset = fields.Integer(required=True)
    hasMore = fields.Boolean(required=True)


@group.endpoint("GET ", role=Role.ADMIN, query=Paging(), returns=UserList(), raises=(*_GUARDED, Invalid))
async def list_users(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """List users, the oldest first."""
    found, total = await users.page(context.store, query["limit"], query["offset"])
    return {"users": found, "total": total, **query, "hasMore": query["offset"] + query["limit"] < total}


@group.endpoint(
    "POST ",
    role=Role.ADMIN,
    body=NewUser(),
    returns=UserAnswer(),
    status=HTTPStatus.CREATED,
    raises=(*_GUARDED, Invalid, Conflict),
)
async def create_user(context: Context, body: dict[str, Any]) -> User:
    """Create a user. Usernames and emails are unique, in any case."""
    return await users.create(context.store, actor=context.caller.actor, **body)


@group.endpoint("GET /{user_id}", role=Role.ADMIN, returns=UserAnswer(), raises=(*_GUARDED, NotFound))
async def get_user(context: Context, user_id: str) -> User:
    """Get one user."""
    return await users.get(context.store, user_id)


@group.endpoint(
    "PUT /{user_id}",
    role=Role.ADMIN,
    body=UserChanges(),
    returns=UserAnswer(),
    raises=(*_GUARDED, Invalid, NotFound, Conflict),
)
async def update_user(context: Context, user_id: str, body: dict[str, Any]) -> User:
    """Change a user's username, email, password or role; the rest stays.

    A new password or role ends the user's sessions at once, a new password its API keys too. The last admin stays
    an admin.
    """
    return await users.update(context.store, user_id, actor=context.caller.actor, changes=body)


@group.endpoint(
    "DELETE /{user_id}", role=Role.ADMIN, status=HTTPStatus.NO_CONTENT, raises=(*_GUARDED, NotFound, Conflict)
)
async def delete_user(context: Context, user_id: str) -> None:
    """Delete a user, with its sessions and API keys. The last admin stays."""
    await users.delete(context.store, user_id, actor=context.caller.actor)
