"""Configuration of apps: held against the JSON Schema of the manifest, its secrets told apart and masked."""

from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import orjson

from storage.errors import Invalid

if TYPE_CHECKING:  # whoever only runs jobs never needs it
    from jsonschema.exceptions import ValidationError

#: What is shown in the place of a secret; on a write it stands for the value that is kept.
MASK = "********"
SCHEMA_LIMIT_BYTES = 64 * 1024
CONFIG_LIMIT_BYTES = 64 * 1024
#: So many fields that a schema does not know are named, of each object.
MOST_UNKNOWN = 10

#: Keywords that would run a publisher's regular expression, or fetch what an address names.
_REFUSED = ("pattern", "patternProperties", "$dynamicRef", "$recursiveRef", "$id", "$dynamicAnchor")
#: Where a schema holds values rather than schemas, and where the keys are names of properties.
_VALUES = frozenset({"const", "default", "enum", "examples", "example", "required", "dependentRequired"})
_NAMED = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise Invalid unless `schema` is a JSON Schema (2020-12) of an object that can be applied safely."""
    from jsonschema import Draft202012Validator  # noqa: PLC0415  see above
    from jsonschema.exceptions import SchemaError  # noqa: PLC0415

    if len(orjson.dumps(schema)) > SCHEMA_LIMIT_BYTES:
        raise Invalid("The configuration's schema is larger than 64 KiB.")
    try:
        Draft202012Validator.check_schema(schema)
        for keyword, value in _keywords(schema):
            if keyword in _REFUSED:
                raise Invalid(f"The configuration's schema uses {keyword!r}, which is not supported.")
            if keyword == "$ref" and not str(value).startswith("#"):
                raise Invalid("The configuration's schema refers to something outside of itself.")
    except SchemaError as error:
        raise Invalid(
            f"The configuration's schema is wrong at {error.json_path}: {error.message[:200]}"
        ) from None
    except RecursionError:
        raise Invalid("The configuration's schema is nested too deeply.") from None
    if _is_secret(schema) or _stray_secret(schema):
        raise Invalid("The configuration's schema marks a secret that is no property.")
    if schema.get("type", "object") != "object":
        raise Invalid("The configuration's schema must describe an object.")


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """Yield every keyword of a schema and of those inside it."""
    if isinstance(schema, list):
        for each in schema:
            yield from _keywords(each)
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        yield keyword, value
        if keyword in _NAMED and isinstance(value, dict):
            for inner in value.values():
                yield from _keywords(inner)
        elif keyword not in _VALUES:
            yield from _keywords(value)


def _stray_secret(schema: Any) -> bool:
    """Tell whether anything but a property, or what one refers to, is marked as a secret: it could not be hidden."""
    if isinstance(schema, list):
        return any(_is_secret(each) or _stray_secret(each) for each in schema)
    if not isinstance(schema, Mapping):
        return False
    for keyword, value in schema.items():
        if keyword in _NAMED and isinstance(value, Mapping):
            if any(_stray_secret(each) for each in value.values()):
                return True
        elif keyword not in _VALUES and (_is_secret(value) or _stray_secret(value)):
            return True
    return False


def check(schema: Mapping[str, Any] | None, config: Mapping[str, Any]) -> None:
    """Raise Invalid, naming each field, unless `config` is what `schema` asks for."""
    if len(orjson.dumps(config)) > CONFIG_LIMIT_BYTES:
        raise Invalid("config: larger than 64 KiB", details={"config": "larger than 64 KiB"})
    if schema is None:
        if config:
            message = "This product takes no configuration; its manifest has no [config]."
            raise Invalid(message, details={"config": message})
        return
    from jsonschema import Draft202012Validator  # noqa: PLC0415  see above
    from referencing import Registry  # noqa: PLC0415
    from referencing.exceptions import Unresolvable  # noqa: PLC0415

    validator = Draft202012Validator(
        schema, registry=Registry(), format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    try:
        problems = [problem for error in validator.iter_errors(config) for problem in _problems(error)]
    except (RecursionError, Unresolvable):
        raise Invalid("The product's configuration schema cannot be applied.") from None
    if problems:
        field, message = problems[0]
        raise Invalid(f"{field}: {message}", details=dict(reversed(problems)))


def _problems(error: "ValidationError") -> Iterator[tuple[str, str]]:
    """Yield where an error is and what is wrong there, for each field; a secret's value is not told."""
    path = [str(part) for part in error.absolute_path]
    expected: Any = error.validator_value
    if error.validator == "required" and isinstance(error.instance, Mapping):
        for name in expected:
            if name not in error.instance:
                yield ".".join(["config", *path, name]), "is required"
    elif error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = _table(error.schema, "properties")
        words = f"is unknown; known are: {', '.join(known)}"[:300] if known else "is unknown"
        for name in islice((name for name in error.instance if name not in known), MOST_UNKNOWN):
            yield ".".join(["config", *path, name[:100]]), words
    else:
        words = f"is not what {error.validator} asks for"
        yield ".".join(["config", *path]), words if _holds_secret(error.schema) else error.message[:300]


_SECRET = ("x-secret", "writeOnly")


def _is_secret(schema: Any) -> bool:
    return isinstance(schema, Mapping) and any(schema.get(word) is True for word in _SECRET)


def _holds_secret(schema: Any) -> bool:
    """Tell whether a schema, or one inside it, describes a secret."""
    return any(keyword in _SECRET and value is True for keyword, value in _keywords(schema)) or bool(
        _secrets(schema)
    )


def _secrets(schema: Any) -> frozenset[str]:
    """Return the names of properties that are secrets, wherever in the schema they are described."""
    defined = {
        f"#/{keyword}/{name}": part
        for keyword in ("$defs", "definitions")
        for name, part in (_table(schema, keyword)).items()
    }
    return frozenset(
        name
        for keyword, value in _keywords(schema)
        if keyword == "properties" and isinstance(value, Mapping)
        for name, part in value.items()
        if _is_secret(part) or (isinstance(part, Mapping) and _is_secret(defined.get(str(part.get("$ref")))))
    )


def _table(schema: Any, keyword: str) -> Mapping[str, Any]:
    found = schema.get(keyword) if isinstance(schema, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def masked(schema: Mapping[str, Any] | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` with each secret that is set hidden behind the mask."""
    shown: dict[str, Any] = _masked(_secrets(schema), config)
    return shown


def _masked(secrets: Collection[str], value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: MASK if name in secrets else _masked(secrets, each) for name, each in value.items()}
    return [_masked(secrets, each) for each in value] if isinstance(value, list) else value


def unmasked(
    schema: Mapping[str, Any] | None, config: Mapping[str, Any], kept: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `config` with the mask replaced by what is `kept`, wherever the mask stands for a secret."""
    whole: dict[str, Any] = _unmasked(_secrets(schema), config, kept)
    return whole


def _unmasked(secrets: Collection[str], value: Any, kept: Any) -> Any:
    if isinstance(value, Mapping):
        known = kept if isinstance(kept, Mapping) else {}
        return {
            name: known[name]
            if _stands_for(secrets, name, each)
            else _unmasked(secrets, each, known.get(name))
            for name, each in value.items()
            if name in known or not _stands_for(secrets, name, each)
        }
    if isinstance(value, list):
        old = kept if isinstance(kept, list) and len(kept) == len(value) else [None] * len(value)
        return [_unmasked(secrets, each, before) for each, before in zip(value, old, strict=True)]
    return value


def _stands_for(secrets: Collection[str], name: str, value: Any) -> bool:
    return name in secrets and value == MASK


def defaults(schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the schema's own defaults give for each property that has one."""
    return {
        name: part["default"]
        for name, part in _table(schema, "properties").items()
        if isinstance(part, Mapping) and "default" in part
    }


def is_complete(schema: Mapping[str, Any] | None, config: Mapping[str, Any]) -> bool:
    """Tell whether an app with this configuration may start."""
    try:
        check(schema, config)
    except Invalid:
        return False
    return True
