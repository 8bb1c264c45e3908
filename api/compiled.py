"""Schemas as straight functions: what marshmallow does for each field at each request is worked out once.

Only what succeeds is done here. At the first thing out of the ordinary the schema itself is asked, so that errors and
their texts are marshmallow's own.
"""

from collections.abc import Callable, Mapping
from typing import Any

from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, fields, missing

_Take = Callable[[Any], Any]

#: What these fields make of a value of this very type is the value, once their validators have passed it.
_TAKEN_AS_IT_IS: Mapping[type[fields.Field[Any]], type] = {fields.String: str, fields.Integer: int}

#: And what they write of one.
_AS_IT_IS: Mapping[type[fields.Field[Any]], type] = {
    fields.String: str,
    fields.Integer: int,
    fields.Float: float,
    fields.Boolean: bool,
}


def loader(schema: Schema) -> _Take:
    """Return a function that reads data as `schema.load` does. It raises ValidationError."""
    if not _plain(schema, "pre_load", "post_load", "validates") or schema.unknown not in {RAISE, EXCLUDE}:
        return schema.load
    tolerant = schema.unknown == EXCLUDE
    by_key = {field.data_key or name: (name, _reading(field)) for name, field in schema.load_fields.items()}
    defaults = {
        name: field.load_default
        for name, field in schema.load_fields.items()
        if field.load_default is not missing
    }
    made = {name: default for name, default in defaults.items() if callable(default)}
    constant = {name: default for name, default in defaults.items() if name not in made}
    required = {field.data_key or name for name, field in schema.load_fields.items() if field.required}
    checks = [getattr(schema, name) for name, _, _ in schema._hooks["validates_schema"]]

    def load(data: Any) -> Any:
        if type(data) is not dict or not required <= data.keys():
            return schema.load(data)
        try:
            result = constant.copy()
            for key, value in data.items():
                if key not in by_key:
                    if tolerant:
                        continue
                    return schema.load(data)
                name, read = by_key[key]
                result[name] = read(value, key, data)
            for name, default in made.items():
                if name not in result:
                    result[name] = default()
            for check in checks:
                check(result, partial=None, many=False, unknown=schema.unknown)
        except ValidationError:
            return schema.load(data)
        return result

    return load


def dumper(schema: Schema) -> _Take:
    """Return a function that writes a mapping as `schema.dump` does."""
    if not _plain(schema, "pre_dump", "post_dump"):
        return schema.dump
    parts = [(name, field.data_key or name, *_writing(field)) for name, field in schema.dump_fields.items()]

    def dump(source: Any) -> Any:
        if not isinstance(source, dict):
            return schema.dump(source)
        result = {}
        for name, key, kind, write in parts:
            if name not in source:
                return schema.dump(source)  # it may have a default
            value = source[name]
            result[key] = value if value is None or type(value) is kind else write(value, name, source)
        return result

    return dump


def _plain(schema: Schema, *hooks: str) -> bool:
    """Tell whether nothing but fields, and checks of the whole, decides what becomes of the data."""
    dotted = any(field.attribute is not None or "." in name for name, field in schema.fields.items())
    odd_checks = any(many or more.get("pass_original") for _, many, more in schema._hooks["validates_schema"])
    return (
        not any(schema._hooks[hook] for hook in hooks)
        and not (dotted or odd_checks or schema.many or schema.partial)
        and type(schema).handle_error is Schema.handle_error
        and type(schema).get_attribute is Schema.get_attribute
    )


def _reading(field: fields.Field[Any]) -> Callable[[Any, str, Any], Any]:
    """Return what reads a value as the field does, which reads whatever is out of the ordinary itself."""
    if field.pre_load or field.post_load:
        return field.deserialize
    kind, checks = _TAKEN_AS_IT_IS.get(type(field)), tuple(field.validators)
    if kind is not None:

        def read(value: Any, key: str, data: Any) -> Any:
            if type(value) is not kind:
                return field.deserialize(value, key, data)
            for check in checks:
                check(value)
            return value

        return read
    if type(field) is fields.List:
        inner = _reading(field.inner)

        def read_each(value: Any, key: str, data: Any) -> Any:
            if type(value) is not list:
                return field.deserialize(value, key, data)
            result = [inner(each, key, data) for each in value]
            for check in checks:
                check(result)
            return result

        return read_each
    return field.deserialize


def _writing(field: fields.Field[Any]) -> tuple[type | None, Callable[[Any, str, Any], Any]]:
    """Return the type whose values a field leaves as they are, and what writes all others."""
    kind = _AS_IT_IS.get(type(field))
    if isinstance(field, fields.Integer | fields.Float) and getattr(field, "as_string", False):
        kind = None
    if type(field) is fields.Nested and not field.many and field.only is None and not field.exclude:
        write = dumper(field.schema)
        return None, lambda value, _name, _source: write(value)
    if type(field) is fields.List:
        inner_kind, inner = _writing(field.inner)

        def each(value: Any, name: str, source: Any) -> Any:
            return [
                one if one is None or type(one) is inner_kind else inner(one, name, source) for one in value
            ]

        return None, each
    return kind, field._serialize
