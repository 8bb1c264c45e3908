"""The form of hostler.toml: every field, its type and its bounds; what is not named here is refused."""

import re
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from marshmallow import Schema, ValidationError, fields, post_load, pre_load, validate, validates_schema

from storage import schedules
from storage.errors import Invalid
from storage.manifests import configuration
from storage.manifests.parts import (
    DEFAULT_MAX_SCALE,
    HARD_MAX_SCALE,
    Components,
    Frontend,
    Health,
    Install,
    Links,
    Manifest,
    Process,
    Restart,
    Routes,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}", re.ASCII)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
_SIGNALS = ("TERM", "INT", "QUIT", "HUP", "KILL", "USR1", "USR2", "WINCH")
_DAY_S = 86_400


def is_name(word: str) -> bool:
    """Tell whether `word` can name a product, an alias or a process: it is part of paths and addresses.

    Two underscores in a row are kept for instance ids.
    """
    return bool(NAME.fullmatch(word)) and "__" not in word and ".." not in word


def _name(word: str) -> None:
    if not is_name(word):
        raise ValidationError("Must be 1 to 63 letters, digits, '.', '_' or '-', without '__' or '..'.")


def _version(word: str) -> None:
    if not VERSION.fullmatch(word) or ".." in word:
        raise ValidationError("Must be 1 to 64 letters, digits, '.', '+', '_' or '-'.")


def inside(path: str) -> None:
    """Refuse a path that could lead out of the release."""
    parts = path.replace("\\", "/").split("/")
    if not path or path.startswith(("/", "\\", "~")) or ".." in parts or ":" in parts[0] or "\0" in path:
        raise ValidationError("Must be a relative path that stays inside the release.")


def _path_of_request(path: str) -> None:
    if not path.startswith("/") or not path.isprintable() or " " in path or len(path) > 1024:
        raise ValidationError("Must be a path that starts with '/'.")


def _environment(env: dict[str, str]) -> None:
    for name, value in env.items():
        if not _ENV_NAME.fullmatch(name) or "\0" in value:
            raise ValidationError(f"{name!r} cannot be an environment variable.")


def _url(address: str) -> None:
    if not address.startswith(("http://", "https://")) or not address.isprintable() or len(address) > 2048:
        raise ValidationError("Must start with http:// or https://.")


class Words(fields.Field[Any]):
    """A command: a list of words that are run without a shell, or one line for a shell."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if isinstance(value, str) and value.strip() and "\0" not in value and len(value) <= 65_536:
            return value
        if (
            isinstance(value, list | tuple)
            and 1 <= len(value) <= 1000
            and all(isinstance(word, str) and "\0" not in word and len(word) <= 65_536 for word in value)
            and value[0]
        ):
            return tuple(value)
        raise ValidationError("Must be a list of words, or one line for a shell.")


def _seconds(low: float, high: float) -> fields.Float:
    return fields.Float(validate=validate.Range(low, high))


def _text(most: int) -> fields.String:
    return fields.String(validate=validate.Length(0, most))


class RestartForm(Schema):
    """`[restart]`, or `[processes.<name>.restart]`."""

    policy = fields.String(validate=validate.OneOf(["always", "on-failure", "never"]))
    attempts = fields.Integer(strict=True, validate=validate.Range(0, 1_000_000))
    backoff_s = _seconds(0, 3600)
    factor = _seconds(1, 10)
    max_s = _seconds(0, _DAY_S)
    stability_s = _seconds(0, _DAY_S)

    @post_load
    def _made(self, data: dict[str, Any], **_: Any) -> Restart:
        return Restart(**data)


class HealthForm(Schema):
    """`[processes.<name>.health]`."""

    kind = fields.String(required=True, validate=validate.OneOf(["http", "tcp", "exec"]))
    path = fields.String(validate=_path_of_request)
    port = fields.Integer(strict=True, allow_none=True, validate=validate.Range(1, 65_535))
    command = Words(allow_none=True)
    delay_s = _seconds(0, 3600)
    period_s = _seconds(0.1, 3600)
    timeout_s = _seconds(0.05, 300)
    failures = fields.Integer(strict=True, validate=validate.Range(1, 1000))
    successes = fields.Integer(strict=True, validate=validate.Range(1, 1000))
    expected_status = fields.Integer(strict=True, allow_none=True, validate=validate.Range(100, 599))

    @validates_schema
    def _whole(self, data: dict[str, Any], **_: Any) -> None:
        if data["kind"] == "exec" and not data.get("command"):
            raise ValidationError("Missing data for required field.", "command")

    @post_load
    def _made(self, data: dict[str, Any], **_: Any) -> Health:
        return Health(**data)


class ProcessForm(Schema):
    """`[processes.<name>]`."""

    command = Words(required=True)
    type = fields.String(load_default="longrun", validate=validate.OneOf(["longrun", "oneshot", "scheduled"]))
    scale = fields.Integer(strict=True, validate=validate.Range(0, HARD_MAX_SCALE))
    max_scale = fields.Integer(strict=True, validate=validate.Range(1, HARD_MAX_SCALE))
    port = fields.Integer(strict=True, allow_none=True, validate=validate.Range(0, 65_535))
    socket = fields.Boolean(truthy={True}, falsy={False})
    env = fields.Dict(keys=fields.String(), values=fields.String(), validate=_environment)
    depends_on = fields.List(fields.String(validate=validate.Length(1, 130)), validate=validate.Length(0, 32))
    stop_signal = fields.String(validate=validate.OneOf(_SIGNALS))
    stop_timeout_s = _seconds(0, 3600)
    memory_limit_bytes = fields.Integer(
        strict=True, allow_none=True, validate=validate.Range(1 << 20, 1 << 50)
    )
    health = fields.Nested(HealthForm, allow_none=True)
    restart = fields.Nested(RestartForm, allow_none=True)
    schedule = fields.String(allow_none=True, validate=validate.Length(1, 200))
    timezone = fields.String(validate=validate.Length(1, 64))
    max_concurrent = fields.Integer(strict=True, validate=validate.Range(0, 100))
    timeout_s = fields.Float(allow_none=True, validate=validate.Range(0.1, 30 * _DAY_S))
    working_directory = fields.String(allow_none=True, validate=inside)
    initial = fields.String(validate=validate.OneOf(["running", "stopped"]))
    enabled = fields.Boolean(truthy={True}, falsy={False})

    @pre_load
    def _in_mebibytes(self, data: Any, **_: Any) -> Any:
        if not isinstance(data, dict) or "memory_limit_mb" not in data:
            return data
        given = dict(data)
        size = given.pop("memory_limit_mb")
        if isinstance(size, bool) or not isinstance(size, int | float) or "memory_limit_bytes" in data:
            raise ValidationError(
                "Must be a number of MiB, without memory_limit_bytes beside it.", "memory_limit_mb"
            )
        return {**given, "memory_limit_bytes": int(size * 1024 * 1024)}

    @validates_schema(skip_on_field_errors=True)
    def _whole(self, data: dict[str, Any], **_: Any) -> None:
        kind, scale = data["type"], data.get("scale", 1)
        if kind == "scheduled" and not data.get("schedule"):
            raise ValidationError("Missing data for required field.", "schedule")
        if kind != "scheduled" and data.get("schedule"):
            raise ValidationError("Only a process of the type scheduled has one.", "schedule")
        if kind != "longrun" and scale > 1:
            raise ValidationError(f"A {kind} process cannot be scaled.", "scale")
        restart = data.get("restart")
        if kind == "oneshot" and restart is not None and restart.policy == "always":
            raise ValidationError("A oneshot process cannot be restarted always.", "restart")
        if scale > data.get("max_scale", DEFAULT_MAX_SCALE):
            raise ValidationError("Must not exceed max_scale.", "scale")
        if data.get("port") and data["port"] + max(scale, 1) - 1 > 65_535:
            raise ValidationError("The ports of all instances must stay below 65536.", "port")
        if data.get("schedule"):
            try:
                schedules.check(data["schedule"], data.get("timezone", "UTC"))
            except Invalid as error:
                raise ValidationError(str(error), "schedule") from None


class InstallForm(Schema):
    """`[install]`."""

    command = Words(required=True)
    timeout_s = _seconds(1, _DAY_S)
    network = fields.Boolean(truthy={True}, falsy={False})

    @post_load
    def _made(self, data: dict[str, Any], **_: Any) -> Install:
        return Install(**data)


class RoutesForm(Schema):
    """`[routes]`."""

    process = fields.String(required=True)
    prefix = fields.String(validate=_path_of_request)

    @post_load
    def _made(self, data: dict[str, Any], **_: Any) -> Routes:
        return Routes(**data)


class ComponentsForm(Schema):
    """`[components]`."""

    config = fields.String(allow_none=True, validate=inside)
    detail = fields.String(allow_none=True, validate=inside)

    @post_load
    def _made(self, data: dict[str, Any], **_: Any) -> Components:
        return Components(**data)


class LinksForm(Schema):
    """`[links]`."""

    engine_url = fields.String(required=True, validate=_url)
    lowcode_urls = fields.List(fields.String(validate=_url), validate=validate.Length(0, 32))
    authority_url = fields.String(allow_none=True, validate=_url)

    @pre_load
    def _as_cuby_spells_it(self, data: Any, **_: Any) -> Any:
        spelled = {"engineUrl": "engine_url", "lowcodeUrls": "lowcode_urls", "authorityUrl": "authority_url"}
        return (
            {spelled.get(name, name): each for name, each in data.items()} if isinstance(data, dict) else data
        )

    @post_load
    def _made(self, data: dict[str, Any], **_: Any) -> Links:
        return Links(**{**data, "lowcode_urls": tuple(data.get("lowcode_urls", ()))})


class FrontendForm(Schema):
    """`[frontends.<name>]`, or its path alone."""

    path = fields.String(required=True, validate=inside)
    title = _text(200)

    @pre_load
    def _short(self, data: Any, **_: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data

    @post_load
    def _made(self, data: dict[str, Any], **_: Any) -> Frontend:
        return Frontend(**data)


class ManifestForm(Schema):
    """A whole manifest."""

    id = fields.String(required=True, validate=_name)
    name = _text(200)
    version = fields.String(validate=_version)
    description = _text(4000)
    kind = fields.String(validate=validate.OneOf(["hostler", "squareberg", "cbox"]))
    install = fields.Nested(InstallForm, allow_none=True)
    processes = fields.Dict(
        keys=fields.String(validate=_name),
        values=fields.Nested(ProcessForm),
        load_default=dict,
        validate=validate.Length(0, 64),
    )
    restart = fields.Nested(RestartForm)
    config = fields.Dict(keys=fields.String(), allow_none=True)
    routes = fields.Nested(RoutesForm, allow_none=True)
    components = fields.Nested(ComponentsForm, allow_none=True)
    links = fields.Nested(LinksForm, allow_none=True)
    frontends = fields.Dict(
        keys=fields.String(validate=_name),
        values=fields.Nested(FrontendForm),
        validate=validate.Length(0, 32),
    )
    active_frontends = fields.List(fields.String())

    @validates_schema(skip_on_field_errors=True)
    def _whole(self, data: dict[str, Any], **_: Any) -> None:
        processes, frontends = data["processes"], data.get("frontends", {})
        routes = data.get("routes")
        if routes is not None and routes.process not in processes:
            raise ValidationError({"process": [f"There is no process {routes.process!r}."]}, "routes")
        for name in data.get("active_frontends", []):
            if name not in frontends:
                raise ValidationError(f"There is no frontend {name!r}.", "active_frontends")
        _refuse_circles(data["id"], processes)
        if data.get("config") is not None:
            try:
                configuration.check_schema(data["config"])
            except Invalid as error:
                raise ValidationError(str(error), "config") from None

    @post_load
    def _made(self, data: dict[str, Any], **_: Any) -> Manifest:
        given = dict(data)
        given["processes"] = tuple(
            Process(name=name, **{**fields_of, "depends_on": tuple(fields_of.get("depends_on", ()))})
            for name, fields_of in data["processes"].items()
        )
        given["active_frontends"] = tuple(data.get("active_frontends", ()))
        return Manifest(**given)


def _refuse_circles(product: str, processes: dict[str, Any]) -> None:
    """Refuse processes that wait for one another. Names that are none of the product's are other apps'."""
    needs = {
        name: [each for each in of.get("depends_on", ()) if each in processes]
        for name, of in processes.items()
    }
    if circle := circle_of(needs):
        problem = circle_told(circle)
        raise ValidationError({min(circle): {"depends_on": [problem]}}, "processes")
    for name, each in processes.items():
        if product in each.get("depends_on", ()) and product not in processes:
            raise ValidationError({name: {"depends_on": ["A product cannot depend on itself."]}}, "processes")


def circle_of(needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Return names that wait for one another, each for the next and the last one for the first; [] if none do."""
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        found: list[str] = error.args[1][1:]
        return found[::-1]
    return []


def circle_told(circle: list[str]) -> str:
    """Return in words that these wait for one another."""
    if len(circle) == 1:
        return f"{circle[0]!r} depends on itself."
    return f"They wait for one another: {' -> '.join([*circle, circle[0]])}."
