"""What real processes tell of themselves: to a collector of traces, to Prometheus, and in their logs."""

import json
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from processes import Stack, finished, log_of, new_stack, until
from servers import free_port
from webs import start_web

from storage import sessions, users
from storage.calls import command, pairs
from storage.store import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "helm"))
from test_monitoring_files import RULES, expressions


@dataclass
class Collector:
    """A small receiver of OTLP over HTTP."""

    spans: list[tuple[str, Any]] = field(default_factory=list)
    url: str = ""

    def of(self, trace_id: str) -> dict[str, tuple[str, Any]]:
        """Return the spans of a trace by their names, each with its service."""
        found = [each for each in self.spans if each[1].trace_id.hex() == trace_id]
        return {span.name: (service, span) for service, span in found}


def collecting(collector: Collector) -> ThreadingHTTPServer:
    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for part in ExportTraceServiceRequest.FromString(body).resource_spans:
                named = {each.key: each.value.string_value for each in part.resource.attributes}
                for scope in part.scope_spans:
                    collector.spans += [(named["service.name"], span) for span in scope.spans]
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.daemon_threads = True
    collector.url = f"http://127.0.0.1:{server.server_port}"
    return server


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    server = collecting(collector)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield collector
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def observed(collector: Collector) -> Iterator[Stack]:
    """A web of two processes, a worker and a scheduler, which tell all they can."""
    stack = new_stack(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="100", HOSTLER_LOG_LEVEL="debug"
    )
    try:
        stack.start("scheduler")
        stack.worker("one", wait=False)
        start_web(stack, processes=2)
        stack.await_workers(["one"])
        yield stack
    finally:
        stack.end()


@pytest.fixture
async def store(observed: Stack) -> AsyncIterator[Store]:
    store = Store(observed.settings)
    yield store
    await store.close()


@pytest.fixture
async def client(observed: Stack, store: Store) -> AsyncIterator[httpx.AsyncClient]:
    name = f"user-{secrets.token_hex(4)}"
    user = await users.create(
        store, actor="t", username=name, email=f"{name}@example.org", password="pass word", role="w"
    )
    headers = {"Authorization": f"Bearer {await sessions.issue(store, user)}"}
    async with httpx.AsyncClient(
        base_url=observed.url, headers=headers, trust_env=False, timeout=30
    ) as client:
        yield client


async def test_one_trace_goes_from_the_request_to_the_job_to_its_command(
    client: httpx.AsyncClient, store: Store, collector: Collector
) -> None:
    trace_id, caller = secrets.token_hex(16), secrets.token_hex(8)
    answer = await client.post(
        "/api/jobs/submit",
        json={"command": "echo $TRACEPARENT"},
        headers={"traceparent": f"00-{trace_id}-{caller}-01"},
    )
    job_id = answer.json()["jobId"]
    assert (await finished(store, job_id)).state == "completed"
    names = {"POST /api/jobs/submit", "job", "claim", "run", "settle"}
    until(lambda: names <= set(collector.of(trace_id)), "all spans have come")
    spans = collector.of(trace_id)
    service, request = spans["POST /api/jobs/submit"]
    assert (service, request.parent_span_id.hex()) == ("hostler-web", caller)
    told = {each.key: each.value for each in request.attributes}
    assert told["http.response.status_code"].int_value == 201
    assert told["http.route"].string_value == "/api/jobs/submit"
    assert told["hostler.request"].string_value == answer.headers["x-request-id"]
    service, job = spans["job"]
    assert (service, job.parent_span_id) == ("hostler-worker", request.span_id)
    assert {each.key: each.value.string_value for each in job.attributes}["hostler.job"] == job_id
    for name in ("claim", "run", "settle"):
        assert spans[name][1].parent_span_id == job.span_id, name
    assert job.start_time_unix_nano >= request.start_time_unix_nano
    assert (await log_of(store, job_id)).decode().strip() == f"00-{trace_id}-{job.span_id.hex()}-01"


@pytest.mark.parametrize(
    "header",
    ["", "nonsense", f"00-{'0' * 32}-{'1' * 16}-01", f"00-{'a' * 32}-{'b' * 16}-01, x", "ff-" + "a" * 52],
)
async def test_a_trace_that_is_none_is_not_gone_on_with(
    client: httpx.AsyncClient, store: Store, collector: Collector, header: str
) -> None:
    answer = await client.post(
        "/api/jobs/submit", json={"command": "exit 3"}, headers={"traceparent": header}
    )
    job = await finished(store, answer.json()["jobId"])
    trace_id = str(job.spec["cause"]).partition(" ")[2][3:35]
    assert len(set(trace_id)) > 4
    until(lambda: {"job", "POST /api/jobs/submit"} <= set(collector.of(trace_id)), "its own spans have come")
    spans = collector.of(trace_id)
    assert spans["POST /api/jobs/submit"][1].parent_span_id == b""
    assert spans["run"][1].status.message == "exit_code"


async def test_one_request_id_follows_a_job_through_the_logs(
    observed: Stack, client: httpx.AsyncClient, store: Store
) -> None:
    request_id = f"request-{secrets.token_hex(6)}"
    answer = await client.post(
        "/api/jobs/submit", json={"command": "true"}, headers={"X-Request-Id": request_id}
    )
    job_id = answer.json()["jobId"]
    await finished(store, job_id)

    def told() -> list[dict[str, Any]]:
        lines = [line for process in observed.processes for line in observed.logged(process).splitlines()]
        return [json.loads(line) for line in lines if request_id in line]

    until(
        lambda: {each["logger"] for each in told()} >= {"hostler.api", "hostler.worker"}, "both have said it"
    )
    web = next(each for each in told() if each["logger"] == "hostler.api")
    assert (web["method"], web["route"], web["status"]) == ("POST", "/api/jobs/submit", 201)
    worker = next(each for each in told() if each["logger"] == "hostler.worker")
    assert (worker["job"], worker["request_id"], worker["outcome"]) == (job_id, request_id, "completed")
    assert len(worker["trace_id"]) == 32


def test_every_line_of_every_process_is_json(observed: Stack) -> None:
    for process in observed.processes:
        for line in observed.logged(process).splitlines():
            assert {"time", "level", "logger", "message"} <= json.loads(line).keys(), line


def scraping(directory: Path, target: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start a Prometheus that scrapes `target` each second and knows the chart's rules."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [{"job_name": "hostler", "static_configs": [{"targets": [target]}]}],
        "rule_files": [str(RULES)],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [binary, f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/tsdb",
             f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage"],
            stdout=log, stderr=log,
        )  # fmt: skip
    return process, f"http://127.0.0.1:{port}"


async def has_traced_exemplar(prometheus: httpx.AsyncClient) -> bool:
    window = {
        "query": "hostler_http_request_seconds_bucket",
        "start": time.time() - 300,
        "end": time.time() + 5,
    }
    found = (await prometheus.get("/api/v1/query_exemplars", params=window)).json()["data"]
    return any("trace_id" in one["labels"] for each in found for one in each["exemplars"])


async def test_a_real_prometheus_finds_every_series_that_rules_and_dashboard_ask_for(
    observed: Stack, client: httpx.AsyncClient, store: Store, tmp_path: Path
) -> None:
    process, url = scraping(tmp_path, observed.url.removeprefix("http://"))
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=10) as prometheus:
            wanted = {name for _, expression in expressions() for name in names_in(expression)}
            known: set[str] = set()
            deadline = time.monotonic() + 60
            while wanted - known:
                assert time.monotonic() < deadline, f"Prometheus knows nothing of {sorted(wanted - known)}"
                # what only a fleet with backups and a past has
                now = store.now_ms()
                await store.call(
                    command("HSET", "h:noted", "good_ms", now, "proven_ms", now, "point_ms", now)
                )
                await client.get("/api/jobs/list")
                known = await series(prometheus)
            for where, expression in expressions():
                asked = expression.replace("$job", "hostler")
                answer = await prometheus.get("/api/v1/query", params={"query": asked})
                assert answer.status_code == 200, f"{where}: {answer.text}"
            up = (await prometheus.get("/api/v1/query", params={"query": "up"})).json()["data"]["result"]
            assert [each["value"][1] for each in up] == ["1"]
            told = (await prometheus.get("/api/v1/rules")).json()["data"]["groups"]
            assert all(rule["health"] != "err" for group in told for rule in group["rules"])
            while not await has_traced_exemplar(prometheus):  # each process tells of its own latest request
                assert time.monotonic() < deadline, "no series has an exemplar that names a trace"
                async with httpx.AsyncClient(
                    base_url=observed.url, headers=client.headers, trust_env=False
                ) as another:
                    await another.get("/api/jobs/list")
        assert "s3_up" in await store.call(command("HGETALL", "h:noted", read=pairs))
    finally:
        process.terminate()
        process.wait(20)


async def series(prometheus: httpx.AsyncClient) -> set[str]:
    """Return the names of all series that Prometheus knows; none before it is ready."""
    try:
        answer = await prometheus.get("/api/v1/label/__name__/values")
    except httpx.TransportError:
        return set()
    return set(answer.json().get("data", ())) if answer.is_success else set()


def names_in(expression: str) -> list[str]:
    import re

    return re.findall(r"hostler_\w+", expression)
