"""The client: what it repeats and what not, whom it believes, how it says that something failed."""

import io
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_server import Answer, FakeServer, error

from cli.client import ATTEMPTS, Client, Event, login
from cli.contexts import Contexts, Server
from cli.failures import Failed
from cli.main import main

URL = "http://127.0.0.1:9"


KEY = "cb_k"


class Answers:
    """Answers in turn; an exception in the place of an answer is raised, as a lost connection is."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers, self.asked = list(answers), list[httpx.Request]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def client_of(
    server: Answers,
    secret: str = KEY,
    contexts: Contexts | None = None,
    on_silence: Callable[[str], None] | None = None,
    **more: Any,
) -> Client:
    named = Server(url=URL, secret=secret, **more)
    transport = httpx.MockTransport(server)
    return Client(named, contexts, transport=transport, pause=lambda _s: None, on_silence=on_silence)


def ok(body: Any = None, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body if body is not None else {"fine": True})


LOST = httpx.ReadError("reset")
REFUSED = httpx.ConnectError("refused")


def test_an_api_key_and_a_token_are_sent_in_their_own_headers() -> None:
    for secret, header, value in (
        ("cb_k", "X-API-Key", "cb_k"),
        ("ey.j.w", "Authorization", "Bearer ey.j.w"),
    ):
        server = Answers(ok())
        with client_of(server, secret) as client:
            client.get("/api/auth/me")
        assert server.asked[0].headers[header] == value


def test_a_read_is_repeated_after_a_lost_connection_and_a_busy_server() -> None:
    server = Answers(LOST, httpx.Response(503, json={"error": "busy"}), ok({"a": 1}))
    with client_of(server) as client:
        assert client.get("/api/jobs/list", limit=3, status=None) == {"a": 1}
    assert [str(each.url.query, "ascii") for each in server.asked] == ["limit=3"] * 3


@pytest.mark.parametrize("answer", [LOST, httpx.Response(503, json={"error": "Redis cannot be reached."})])
def test_a_change_that_may_have_happened_is_not_repeated(answer: httpx.Response | Exception) -> None:
    server = Answers(answer)
    with client_of(server) as client, pytest.raises(Failed):
        client.call("POST", "/api/jobs/x/retry")
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "answer", [REFUSED, httpx.Response(429, json={"error": "slow"}, headers={"Retry-After": "2"})]
)
def test_a_change_that_has_not_happened_is_repeated(answer: httpx.Response | Exception) -> None:
    server = Answers(answer, ok())
    pauses: list[float] = []
    with client_of(server) as client:
        client.pause = pauses.append
        assert client.call("POST", "/api/jobs/x/retry") == {"fine": True}
    assert len(server.asked) == 2
    assert not isinstance(answer, httpx.Response) or pauses[0] >= 2


def test_a_change_under_an_idempotency_key_is_repeated_as_it_was() -> None:
    server = Answers(LOST, ok())
    with client_of(server) as client:
        client.call(
            "POST",
            "/api/jobs/submit",
            body={"command": "x"},
            headers={"Idempotency-Key": "k"},
            repeatable=True,
        )
    first, second = server.asked
    assert first.content == second.content == b'{"command":"x"}'
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"] == "k"


def test_it_gives_up_in_one_sentence_that_names_the_server() -> None:
    server = Answers(*[REFUSED] * ATTEMPTS)
    with client_of(server) as client, pytest.raises(Failed, match=rf"Nothing answers at {URL}\.") as failed:
        client.get("/x")
    assert failed.value.hint
    assert not server.answers


def test_who_waits_for_a_server_that_takes_long_to_refuse_waits_twice_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0

    class Slow(Answers):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            nonlocal now_s
            now_s += 5  # as long as the API waits for Redis
            return super().__call__(request)

    monkeypatch.setattr("cli.client.time.monotonic", lambda: now_s)
    server = Slow(*[httpx.Response(503, json={"error": "Redis cannot be reached."})] * ATTEMPTS)
    with client_of(server) as client, pytest.raises(Failed, match="Redis cannot be reached"):
        client.get("/api/jobs/list")
    assert len(server.asked) == 2


def test_a_server_that_takes_long_to_answer_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()
    heard = threading.Event()

    class Slow(Answers):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            assert heard.wait(10)
            return super().__call__(request)

    def tell(sentence: str) -> None:
        told.append(sentence)
        heard.set()

    monkeypatch.setattr("cli.client.TOLD_AFTER_S", 0.01)
    with client_of(Slow(LOST, ok()), on_silence=tell) as client:
        assert client.get("/x") == {"fine": True}
    assert told == [f"{URL} has not answered yet; waiting."]


def test_a_server_that_answers_soon_is_not_told_of() -> None:
    told = list[str]()
    with client_of(Answers(ok()), on_silence=told.append) as client:
        client.get("/x")
    waiting = [each for each in threading.enumerate() if isinstance(each, threading.Timer)]
    assert not told
    assert all(each.finished.is_set() for each in waiting)


def test_the_servers_own_sentence_and_what_it_says_of_fields_are_passed_on() -> None:
    body = {
        "error": "Invalid request",
        "message": "timeout: too long",
        "details": {
            "timeout": "is too long",
            "env": "bad",
            **{f"jobs[{number}].x": "Unknown." for number in range(18)},
        },
        "furtherDetails": 315,
    }
    with client_of(Answers(ok(body, 400))) as client, pytest.raises(Failed) as failed:
        client.get("/x")
    told = str(failed.value)
    assert told == "timeout: too long. env: bad jobs[0].x: Unknown. jobs[1].x: Unknown. And 331 more."


def test_a_server_that_is_not_hostler_is_told_apart() -> None:
    with (
        client_of(
            Answers(httpx.Response(502, text="<html>"), *[httpx.Response(502, text="<html>")] * ATTEMPTS)
        ) as client,
        pytest.raises(Failed, match="answered 502, and not as Hostler does"),
    ):
        client.get("/x")
    with (
        client_of(Answers(httpx.Response(200, text="<html>"))) as client,
        pytest.raises(Failed, match="JSON"),
    ):
        client.get("/x")


@pytest.fixture
def contexts(tmp_path: Path) -> Contexts:
    contexts = Contexts({"HOSTLER_CONFIG": str(tmp_path / "contexts.json")})
    contexts.save("default", url=URL, secret="old.t.1", email="a@b.c")
    return contexts


def secret_in(contexts: Contexts) -> str:
    return str(contexts.load()["contexts"]["default"]["secret"])


def test_an_expired_session_is_renewed_and_the_new_token_saved(contexts: Contexts) -> None:
    server = Answers(ok({"error": "expired"}, 401), ok({"token": "new.t.2"}), ok({"me": 1}))
    with client_of(server, "old.t.1", contexts, context="default") as client:
        assert client.get("/api/auth/me") == {"me": 1}
    assert [each.url.path for each in server.asked] == ["/api/auth/me", "/api/auth/refresh", "/api/auth/me"]
    assert server.asked[2].headers["Authorization"] == "Bearer new.t.2"
    assert secret_in(contexts) == "new.t.2"


def test_a_token_that_another_command_renewed_meanwhile_is_used_and_not_traded_in_twice(
    contexts: Contexts,
) -> None:
    contexts.save("default", url=URL, secret="other.t.3", email="a@b.c")
    server = Answers(ok({"error": "expired"}, 401), ok({"me": 1}))
    with client_of(server, "old.t.1", contexts, context="default") as client:
        client.get("/api/auth/me")
    assert server.asked[1].headers["Authorization"] == "Bearer other.t.3"


def test_a_session_that_cannot_be_renewed_asks_for_a_login(contexts: Contexts) -> None:
    server = Answers(ok({"error": "expired"}, 401), ok({"error": "ended"}, 401))
    with client_of(server, "old.t.1", contexts, context="default") as client, pytest.raises(Failed) as failed:
        client.get("/api/auth/me")
    assert failed.value.hint.startswith(f"hostler login --url {URL}")
    assert secret_in(contexts) == "old.t.1"


def test_a_key_of_the_environment_that_is_refused_is_named_since_a_login_would_not_count(
    contexts: Contexts,
) -> None:
    contexts.save("default", url=URL, secret="saved.t.1", email="a@b.c")
    for environ, option, named in (
        ({"HOSTLER_API_KEY": "cb_old"}, None, "HOSTLER_API_KEY"),
        ({"HOSTLER_TOKEN": "old.t.1"}, None, "HOSTLER_TOKEN"),
        ({"HOSTLER_API_KEY": "cb_old"}, "cb_older", "--api-key"),
    ):
        server = contexts.server(environ, url=None, api_key=option)
        answers = httpx.MockTransport(Answers(ok({"error": "No longer valid."}, 401)))
        with Client(server, contexts, transport=answers) as client, pytest.raises(Failed) as failed:
            client.get("/api/jobs/list")
        assert str(failed.value) == "No longer valid."
        assert failed.value.hint.endswith(f", then the same without {named}")


@pytest.mark.parametrize(("status", "taken_in"), [(200, True), (412, True), (403, False)])
def test_a_file_whose_first_put_was_answered_to_nobody_is_taken_in(
    server: FakeServer, tmp_path: Path, status: int, taken_in: bool
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    place = {"fileId": "file-1", "uploadUrl": f"{server.url}/object", "method": "PUT", "headers": {}}
    server.on("POST /api/files/presign", Answer(body=place))
    server.on("PUT /object", Answer(status, b""))
    server.on("POST /api/files/file-1/complete", Answer(body={"fileId": "file-1"}))
    with Client(Server(url=server.url, secret=KEY), None, pause=lambda _s: None) as client:
        if taken_in:
            whole = client.put_directly(tmp_path / "a", filename="a", on_progress=lambda _n: None)
            assert whole == {"fileId": "file-1"}
        else:
            with pytest.raises(Failed, match=str(status)):
                client.put_directly(tmp_path / "a", filename="a", on_progress=lambda _n: None)


def test_an_upload_is_sent_in_pieces_and_whole_again_after_a_loss(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(range(256)) * 4096)
    heard: list[int] = []
    server = Answers(LOST, ok({"fileId": "file-1"}, 201))
    with client_of(server) as client:
        assert client.upload(path, filename="näme.bin", on_progress=heard.append) == {"fileId": "file-1"}
    sent = server.asked[1].content
    assert path.read_bytes() in sent
    assert b'name="file"' in sent
    assert len(sent) == int(server.asked[1].headers["Content-Length"])
    assert max(b - a for a, b in itertools.pairwise(heard)) <= 1024 * 1024
    assert heard.count(path.stat().st_size) >= 2


def test_a_download_starts_over_when_it_breaks_off() -> None:
    def breaking() -> Iterator[bytes]:
        yield b"first half"
        raise LOST

    server = Answers(httpx.Response(200, content=breaking()), httpx.Response(200, content=b"all of it"))
    target = io.BytesIO()
    with client_of(server) as client:
        client.download("/api/files/download/f", target, on_progress=lambda _done, _total: None)
    assert target.getvalue() == b"all of it"


def test_a_download_that_is_refused_leaves_the_target_empty() -> None:
    target = io.BytesIO()
    answers = Answers(ok({"error": "Not found", "message": "File not found"}, 404))
    with client_of(answers) as client, pytest.raises(Failed, match="File not found"):
        client.download("/x", target, on_progress=lambda _done, _total: None)
    assert target.getvalue() == b""


def stream(*events: tuple[str, str, Any], then: Exception | None = None) -> httpx.Response:
    def body() -> Iterator[bytes]:
        for identity, name, data in events:
            text = f"id: {identity}\nevent: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
            for byte in text.encode():  # the network may cut anywhere
                yield bytes([byte])
        if then is not None:
            raise then

    return httpx.Response(200, content=body())


def follow(server: Answers, until: str, on_loss: Callable[[], None] = lambda: None) -> list[Event]:
    seen = []
    with client_of(server) as client:
        events = client.follow("/api/jobs/j/log", on_loss=on_loss)
        for event in events:
            seen.append(event)
            if event.name == until:
                break
        events.close()
    return seen


def test_a_log_goes_on_after_the_last_event_when_the_connection_is_lost() -> None:
    losses: list[None] = []
    server = Answers(
        stream(("5-1.1", "output", {"data": "one\u2028still one\n"}), then=LOST),
        REFUSED,
        httpx.Response(503, json={"error": "deploying"}),
        stream(("5-1.2", "output", {"data": "two\n"}), ("5-2.2", "completed", {"status": "completed"})),
    )
    seen = follow(server, "completed", lambda: losses.append(None))
    assert [event.data.get("data") for event in seen] == ["one\u2028still one\n", "two\n", None]
    assert [each.headers.get("Last-Event-ID") for each in server.asked] == [None, "5-1.1", "5-1.1", "5-1.1"]
    assert len(losses) == 1, "one loss is told once"


def test_a_log_that_ends_without_an_end_is_taken_up_again() -> None:
    server = Answers(stream(("1", "output", {"data": "a"})), stream(("2", "completed", {"status": "failed"})))
    assert [event.name for event in follow(server, "completed")] == ["output", "completed"]


def test_a_log_of_no_job_fails_at_once() -> None:
    with pytest.raises(Failed, match="Job not found"):
        follow(Answers(ok({"error": "Not found", "message": "Job not found"}, 404)), "completed")


def test_a_login_by_name_or_email_returns_the_session_and_says_when_it_is_wrong() -> None:
    server = Answers(ok({"token": "t"}), ok({"token": "t"}), ok({"error": "Invalid credentials"}, 401))
    transport = httpx.MockTransport(server)
    assert login(URL, "ada@example.com", "pw", transport=transport) == {"token": "t"}
    assert login(URL, "ada", "pw", transport=transport) == {"token": "t"}
    assert json.loads(server.asked[0].content) == {"email": "ada@example.com", "password": "pw"}
    assert json.loads(server.asked[1].content) == {"username": "ada", "password": "pw"}
    with pytest.raises(Failed, match="not with this password"):
        login(URL, "ada", "pw", transport=transport)


@pytest.mark.parametrize(
    ("words", "route", "tried"),
    [
        ("jobs show x", "GET /api/jobs/status", "hostler jobs list"),
        ("quarantine release x", "POST /api/jobs/quarantine/x/release", "hostler quarantine list"),
        ("schedules show x", "GET /api/schedules/x", "hostler schedules list"),
        ("files show x", "GET /api/files/x", "hostler files ls"),
        ("workers show x", "GET /api/workers/x", "hostler workers list"),
        ("products show x", "GET /api/releases/x", "hostler products list"),
    ],
)
def test_what_is_not_there_names_the_command_that_lists_what_is(
    server: FakeServer, capsys: pytest.CaptureFixture[str], words: str, route: str, tried: str
) -> None:
    server.on(route, error(404, "There is no such thing."))
    assert main(words.split()) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"Try: {tried}"
    server.routes[route] = [error(403, "This needs the operator role.")]
    assert main(words.split()) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "Try: hostler whoami"


def test_a_server_that_does_not_know_the_path_may_be_older(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = error(404, "There is nothing at this path.")
    unknown.headers["X-Error-Code"] = "ROUTE_NOT_FOUND"
    server.on("GET /api/overview", unknown)
    assert main(["overview"]) == 1
    assert "may be older than this command line" in capsys.readouterr().err
