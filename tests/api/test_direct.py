"""The straight way to endpoints, held against Falcon's: the same requests, the same answers."""

import re
from typing import Any

import httpx
import pytest
from whole import Hostler

from api import body as bodies
from api.app import groups
from api.direct import endpoints
from api.exchange import WHOLE

UNKNOWN = "job-" + "0" * 20
JSON = {"Content-Type": "application/json"}
STATUS = f"/api/jobs/status?jobId={UNKNOWN}"
BATCH = b'{"jobs": [{"command": "true"}, {"command": "false"}]}'

#: Method, path, headers beside the credential, body, whether there is a credential.
REQUESTS: dict[str, tuple[str, str, dict[str, str], bytes | None, bool]] = {
    "submit": ("POST", "/api/jobs/submit", JSON, b'{"command": "true", "tags": ["gpu"]}', True),
    "with a trailing slash": ("POST", "/api/jobs/submit/", JSON, b'{"command": "true"}', True),
    "percent-encoded": ("POST", "/api/jobs/%73ubmit", JSON, b'{"command": "true"}', True),
    "by its other name": ("GET", f"/jobs/status?jobId={UNKNOWN}", {}, None, True),
    "a batch": ("POST", "/api/jobs/submit-batch", JSON, BATCH, True),
    "one wrong in a batch": ("POST", "/api/jobs/submit-batch", JSON, b'{"jobs": [{"command": 3}]}', True),
    "list": ("GET", "/api/jobs/list?limit=3&tags=a&tags=b", {}, None, True),
    "list, blank filter": ("GET", "/api/jobs/list?status=", {}, None, True),
    "list, unknown filter": ("GET", "/api/jobs/list?nonsense=1", {}, None, True),
    "nothing there": ("GET", STATUS, {}, None, True),
    "no id": ("GET", "/api/jobs/status", {}, None, True),
    "no such job to cancel": ("POST", "/api/jobs/cancel", JSON, b'{"jobId": "%s"}' % UNKNOWN.encode(), True),
    "no body": ("POST", "/api/jobs/submit", JSON, None, True),
    "empty": ("POST", "/api/jobs/submit", JSON, b"", True),
    "no JSON": ("POST", "/api/jobs/submit", JSON, b'{"command": ', True),
    "no object": ("POST", "/api/jobs/submit", JSON, b"[]", True),
    "unknown field": ("POST", "/api/jobs/submit", JSON, b'{"nonsense": 1}', True),
    "wrong type": ("POST", "/api/jobs/submit", {"Content-Type": "text/plain"}, b'{"command": "x"}', True),
    "oversized": ("POST", "/api/jobs/submit", JSON, b'{"command": "%s"}' % (b"x" * 1_100_000), True),
    "larger than one piece": ("POST", "/api/jobs/submit", JSON, b'{"command": "true"}' + b" " * 90_000, True),
    "with a key": ("POST", "/api/jobs/submit", JSON | {"Idempotency-Key": "k"}, b'{"command": "x"}', True),
    "with a bad key": ("POST", "/api/jobs/submit", JSON | {"Idempotency-Key": "k" * 201}, b"{}", True),
    "a request id of no form": ("GET", STATUS, {"X-Request-Id": "a b\tc"}, None, True),
    "unauthenticated": ("GET", STATUS, {}, None, False),
    "unauthenticated submit": ("POST", "/api/jobs/submit", JSON, b'{"command": "true"}', False),
    "forged": ("GET", STATUS, {"Authorization": "Bearer cb_forged"}, None, False),
    "HEAD": ("HEAD", STATUS, {}, None, True),
    "OPTIONS": ("OPTIONS", "/api/jobs/submit", {}, None, True),
    "wrong method": ("GET", "/api/jobs/submit", {}, None, True),
    "unknown method": ("PURGE", "/api/jobs/submit", {}, None, True),
}


def shown(answer: httpx.Response) -> tuple[int, dict[str, str], str]:
    """Return an answer without what is another one's at each request: ids, times, what the rate has left."""
    changing = {"x-ratelimit-remaining", "x-ratelimit-reset"}
    headers = {name: "" if name in changing else value for name, value in answer.headers.items()}
    headers["x-request-id"] = re.sub(r"[0-9a-f]{16}", "drawn", headers["x-request-id"])
    body = re.sub(r"(job|batch)-[0-9a-z]{20}", r"\1", answer.text)
    return answer.status_code, headers, re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "then", body)


def with_whole_answers(app: Any) -> Any:
    """Return `app` behind a server that takes whole answers, as api/server.py does."""

    async def served(scope: Any, receive: Any, send: Any) -> None:
        async def answer(status: int, lines: bytes, body: bytes | None) -> None:
            fields = [tuple(line.split(b": ", 1)) for line in lines.split(b"\r\n")[:-1]]
            if body is not None:
                fields.append((b"content-length", str(len(body)).encode()))
            await send({"type": "http.response.start", "status": status, "headers": fields})
            await send({"type": "http.response.body", "body": body or b""})

        await app({**scope, "extensions": {WHOLE: answer}}, receive, send)

    return served


@pytest.mark.parametrize("name", REQUESTS)
async def test_both_ways_answer_the_same(
    hostler: Hostler, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    method, path, headers, body, known = REQUESTS[name]
    operator = await hostler.user("w") if known else hostler.client()
    headers = {"X-Request-Id": "request-0001", **headers}
    await operator.get("/api/jobs/list")  # so that this process remembers the caller

    async def ask() -> tuple[int, dict[str, str], str]:
        return shown(await operator.request(method, path, headers=headers, content=body))

    by_messages = await ask()
    monkeypatch.setattr(operator._transport, "app", with_whole_answers(hostler.app))
    whole = await ask()
    monkeypatch.setattr(hostler.app, "straight", {})
    by_falcon = await ask()
    assert by_messages == by_falcon
    assert whole == by_falcon


async def test_both_ways_refuse_alike_what_is_beyond_the_rate(
    settings_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with settings_for(rate_limit_per_s=1) as hostler:
        operator = await hostler.user("w")
        refused = []
        app: Any = hostler.app
        for straight in (app.straight, dict[Any, Any]()):
            monkeypatch.setattr(hostler.app, "straight", straight)
            answers = [await operator.get(STATUS, headers={"X-Request-Id": "request-0001"}) for _ in range(4)]
            refused.append(next(shown(each) for each in answers if each.status_code == 429))
        assert refused[0] == refused[1]
        assert refused[0][1]["retry-after"] == "1"


async def test_an_error_of_ours_is_a_500_that_says_nothing_of_it_on_both_ways(
    hostler: Hostler, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(bodies, "json_object", breaks)
    operator = await hostler.user("w")
    answers = []
    app: Any = hostler.app
    for straight in (app.straight, dict[Any, Any]()):
        monkeypatch.setattr(hostler.app, "straight", straight)
        answers.append(
            shown(
                await operator.post(
                    "/api/jobs/submit", json={"command": "true"}, headers={"X-Request-Id": "request-0001"}
                )
            )
        )
    assert answers[0] == answers[1]
    assert answers[0][0] == 500
    assert "secret" not in answers[0][2]


def test_what_goes_straight_follows_from_the_declarations() -> None:
    straight = endpoints(groups())
    assert ("POST", "/api/jobs/submit") in straight
    assert all(endpoint.carries and not endpoint.raw for endpoint in straight.values())
