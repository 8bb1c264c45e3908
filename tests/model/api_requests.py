"""Requests made up from the OpenAPI document: such as it allows, and such as it does not."""

import json
import urllib.parse
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

#: Values that mean something to somebody on the way: parsers, shells, paths, Redis, Lua.
ODD: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, -(2**70), 1e308, "", " ", "\x00", "\ud800", "\u202e", "../../etc/passwd",
    "%00", "$(id)", "{{7*7}}", "a" * 5000, "é" * 300, "null", "NaN", "-0", "1e999", "*", "h:users",
    "job-" + "0" * 20, [], [[]], {}, {"": 1}, {"$ref": "#"}, [None], ["a"] * 200, "2026-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999Z", "0001-01-01T00:00:00+14:00", "https://127.0.0.1/", "http://[::1", "@reboot",
    "* * * * *", "0 0 30 2 *", "\r\nX: y",
]  # fmt: skip
RAW_BODIES = [
    b"", b"{", b"[]", b"null", b'"x"', b"{}", b'{"a":NaN}', b'{"jobId":1e999}', b"\xff\xfe", b"{" * 2000,
    b"[" * 100_000, b'{"command":"a","command":"b"}', b"\xef\xbb\xbf{}", b'{"command":"\\ud800"}',
    b'{"a":' * 500 + b"1" + b"}" * 500,
]  # fmt: skip
BEARERS = ["admin", "operator", "viewer", "worker", "key", "forged", ""]
#: A long poll that nobody ends would hold the search up.
WAITS = ["0", "0.01", "-1", "61", "x", ""]


#: Under which name a value is given, where it is asked for under another one.
ALIASES = {"id": "jobId", "dependsOn": "jobId", "key_id": "id", "user_id": "id", "fileUrl": "url"}


@dataclass
class Known:
    """What answers have named so far, so that later requests reach beyond the first check."""

    values: defaultdict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))

    def learn(self, body: Any) -> None:
        """Remember every short value of an answer by its field's name."""
        if isinstance(body, dict):
            for name, value in body.items():
                if isinstance(value, str | int) and len(str(value)) < 200:
                    kept = self.values[name]
                    if value not in kept:
                        kept.append(value)
                        del kept[:-8]
                self.learn(value)
        elif isinstance(body, list):
            for each in body:
                self.learn(each)

    def choose(self, name: str, number: int) -> Any:
        """Return one of the values known by that name."""
        names = [each for each in (name, ALIASES.get(name, name)) if self.values[each]]
        among = self.values[names[number % len(names)]] if names else ["none"]
        return among[number % len(among)]


@dataclass
class Made:
    """One request, ready to be sent."""

    method: str
    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes
    bearer: str  # as whom: a role, or nobody

    def __str__(self) -> str:
        asked = urllib.parse.urlencode(self.query, errors="surrogatepass")
        return f"{self.method} {self.path}?{asked} as {self.bearer} {self.headers} {self.body[:500]!r}"


class Requests:
    """Makes requests for the operations of a document."""

    def __init__(self, document: dict[str, Any], known: Known) -> None:
        self.document, self.known = document, known

    def operations(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Return method, path and description of every operation."""
        return [
            (method.upper(), path, operation)
            for path, methods in sorted(self.document["paths"].items())
            for method, operation in sorted(methods.items())
        ]

    def make(self, draw: Any, method: str, path: str, operation: dict[str, Any]) -> Made:
        """Draw one request for an operation."""
        query: list[tuple[str, str]] = []
        for parameter in operation["parameters"]:
            name, schema = parameter["name"], parameter["schema"]
            if parameter["in"] == "path":
                value = str(self.value(draw, schema, name))
                path = path.replace(
                    "{" + name + "}", urllib.parse.quote(value or "-", safe="", errors="surrogatepass")
                )
            elif parameter.get("required") or draw(st.booleans()):
                value = draw(st.sampled_from(WAITS)) if name == "wait" else self.value(draw, schema, name)
                values = value if isinstance(value, list) else [value]
                query += [(name, each if isinstance(each, str) else json.dumps(each)) for each in values]
        if draw(st.integers(0, 9)) == 9:
            query.append((draw(st.sampled_from(["x", "limit", "", "a[b]"])), str(draw(st.sampled_from(ODD)))))
        headers, body = self._body(draw, operation)
        bearer = draw(st.sampled_from(BEARERS))
        if draw(st.integers(0, 3)) < 3:  # mostly somebody who may
            bearer = "worker" if operation["x-role"].endswith("worker") else "admin"
        return Made(method, path, query, {**headers, **self._headers(draw)}, body, bearer)

    def _headers(self, draw: Any) -> dict[str, str]:
        headers = {}
        for name, values in {
            "Idempotency-Key": ["k1", "k2", "", "k" * 300, "k\x01"],
            "X-Request-Id": ["request-0001", "x", "a b", "y" * 100],
            "Range": ["bytes=0-1", "bytes=-1", "bytes=9-1", "lines=1-2", "bytes=0-0,2-3"],
            "If-None-Match": ["*", '"x"'],
            "Accept": ["application/json", "text/html", "x"],
            "Origin": ["https://example.org", "null"],
        }.items():
            if draw(st.integers(0, 5)) == 5:
                headers[name] = draw(st.sampled_from(values))
        return headers

    def _body(self, draw: Any, operation: dict[str, Any]) -> tuple[dict[str, str], bytes]:
        content = operation.get("requestBody", {}).get("content", {})
        kind = next(iter(content), "application/json")
        headers = {
            "Content-Type": kind
            if draw(st.integers(0, 19)) < 19
            else draw(st.sampled_from(["text/plain", "x/", ""]))
        }
        if not content and draw(st.integers(0, 4)) < 4:
            return {}, b""
        if draw(st.integers(0, 9)) == 9:
            return headers, draw(st.sampled_from(RAW_BODIES) | st.binary(max_size=40))
        if kind == "multipart/form-data":
            return {"Content-Type": "multipart/form-data; boundary=b"}, self._multipart(draw)
        if kind != "application/json" or not content:
            return headers, draw(st.binary(max_size=200))
        value = self.value(draw, content[kind]["schema"], "", plain=draw(st.integers(0, 3)) > 0)
        return headers, json.dumps(value).encode()

    @staticmethod
    def _multipart(draw: Any) -> bytes:
        name = draw(st.sampled_from(["file", "other", ""]))
        filename = draw(st.sampled_from(["a.zip", "../a", "", "a\x00b", "é.tar.gz"]))
        data = draw(st.sampled_from([b"PK\x05\x06" + b"\x00" * 18, b"", b"data", b"--b--"]))
        end = draw(st.sampled_from([b"\r\n--b--\r\n", b"\r\n--b\r\n", b""]))
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
        return head.encode() + data + end

    def value(self, draw: Any, schema: dict[str, Any], name: str, *, plain: bool = False) -> Any:
        """Draw a value for a field: as described, known from an answer, or (unless `plain`) anything odd."""
        if not plain and draw(st.integers(0, 11)) == 11:
            return draw(
                st.sampled_from(ODD) | st.text(max_size=20) | st.integers() | st.floats(allow_nan=False)
            )
        if "$ref" in schema:
            schema = self.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        if "anyOf" in schema:
            schema = draw(st.sampled_from(schema["anyOf"]))
            return self.value(draw, schema, name, plain=plain)
        if "enum" in schema:
            return draw(st.sampled_from(schema["enum"]))
        kind = schema.get("type", "string")
        kind = draw(st.sampled_from(kind)) if isinstance(kind, list) else kind
        return getattr(self, f"_{kind}")(draw, schema, name, plain)

    def _object(self, draw: Any, schema: dict[str, Any], _: str, plain: bool) -> dict[str, Any]:
        required = schema.get("required", [])
        made = {
            name: self.value(draw, inner, name, plain=plain)
            for name, inner in schema.get("properties", {}).items()
            if (draw(st.integers(0, 19)) < 19 if name in required else draw(st.integers(0, 3)) == 3)
        }
        more = schema.get("additionalProperties")
        if isinstance(more, dict):
            inner = more or {"type": "string"}
            made |= {
                key: self.value(draw, inner, key, plain=plain)
                for key in draw(st.sets(st.text(max_size=5), max_size=2))
            }
        elif not plain and draw(st.integers(0, 15)) == 15:
            made[draw(st.sampled_from(["unknown", "", "__proto__", "success"]))] = draw(st.sampled_from(ODD))
        return made

    def _array(self, draw: Any, schema: dict[str, Any], name: str, plain: bool) -> list[Any]:
        size = draw(st.integers(schema.get("minItems", 0), max(2, schema.get("minItems", 0))))
        return [self.value(draw, schema.get("items", {}), name, plain=plain) for _ in range(size)]

    def _string(self, draw: Any, schema: dict[str, Any], name: str, plain: bool) -> str:
        if draw(st.integers(0, 3)) > 0 and (plain or name):
            if name in self.known.values or name in ALIASES:
                return str(self.known.choose(name, draw(st.integers(0, 63))))
            return draw(
                st.sampled_from(
                    ["gpu", "linux", "true", "a.txt", "0 * * * *", "UTC", "https://example.org/x"]
                )
            )
        return draw(
            st.text(
                min_size=min(schema.get("minLength", 0), 3), max_size=min(schema.get("maxLength", 30), 30)
            )
        )

    def _integer(self, draw: Any, schema: dict[str, Any], name: str, plain: bool) -> int:
        low, high = int(schema.get("minimum", 0)), int(schema.get("maximum", 10**6))
        return draw(st.sampled_from([low, min(low + 1, high), high]) | st.integers(low, high))

    def _number(self, draw: Any, schema: dict[str, Any], name: str, plain: bool) -> float:
        low, high = float(schema.get("minimum", 0)), float(schema.get("maximum", 1e6))
        return draw(st.sampled_from([low, high]) | st.floats(low, high))

    def _boolean(self, draw: Any, schema: dict[str, Any], name: str, plain: bool) -> bool:
        return draw(st.booleans())

    def _null(self, draw: Any, schema: dict[str, Any], name: str, plain: bool) -> None:
        return None
