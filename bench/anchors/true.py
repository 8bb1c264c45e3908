"""Running `true`: xargs, which keeps nothing, and peers that keep exit code and output."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import redis

from bench.environments import virtual_environment
from bench.figure import Bench, Measure, Missing
from bench.processes import cpu_s, environment, process
from bench.stack import valkey

_HERE = Path(__file__).parent
_PATIENCE_S = 60.0
#: This share of a peer's jobs is done before its time is taken, so that its start does not count.
_WARM = 0.15
#: With so few left it is looked every 2 ms whether all are done.
_NEARLY = 20


def await_count(count: Callable[[], int], wanted: int) -> float:
    """Wait until `count` answers `wanted` or more, and return when that was. Raises RuntimeError."""
    deadline = time.monotonic() + _PATIENCE_S
    while (now := count()) < wanted:
        if time.monotonic() > deadline:
            raise RuntimeError(f"Only {now} of {wanted} were done within {_PATIENCE_S:g} s.")
        # often only towards the end, for each look takes Redis and a core from what is measured
        time.sleep(0.002 if wanted - now < _NEARLY else 0.02)
    return time.perf_counter()


@contextlib.contextmanager
def xargs(bench: Bench) -> Iterator[Measure]:
    """Run `true` by xargs, two at a time."""
    binary = shutil.which("xargs")
    if binary is None:
        raise Missing("xargs is not installed: apt-get install findutils")
    count = 200 if bench.quick else 600
    lines = "".join(f"{number}\n" for number in range(count)).encode()

    def measure() -> float:
        began = time.perf_counter()
        subprocess.run([binary, "-P2", "-n1", "true"], input=lines, check=True)
        return count / (time.perf_counter() - began)

    yield measure


def _peer(bench: Bench, name: str, *packages: str) -> tuple[Path, str, dict[str, str]]:
    return virtual_environment(name, *packages), valkey(bench), environment(PYTHONPATH=str(_HERE))


@contextlib.contextmanager
def celery(bench: Bench) -> Iterator[Measure]:
    """Run `true` in Celery's two prefork processes, filled beforehand."""
    programs, url, env = _peer(bench, "celery", "celery[redis]==5.7.*", "hiredis")
    count = 150 if bench.quick else 400
    command = [
        str(programs / "celery"), "-A", "true_celery", "-b", url, "--result-backend", url, "worker",
        "-P", "prefork", "-c", "2", "-l", "ERROR", "--without-gossip", "--without-mingle",
    ]  # fmt: skip

    def measure() -> float:
        with redis.Redis.from_url(url) as client:
            client.flushall()
            subprocess.run(
                [programs / "python", "-m", "true_celery", url, str(count)],
                env=env,
                cwd=bench.directory,
                check=True,
            )

            def done() -> int:
                return sum(1 for _ in client.scan_iter("celery-task-meta-*", count=1000))

            with process(command, log=bench.directory / "celery.log", env=env, cwd=bench.directory):
                return _rate(done, count)

    yield measure


@contextlib.contextmanager
def rq(bench: Bench) -> Iterator[Measure]:
    """Run `true` in RQ's worker, filled beforehand; also what it costs of the processor, in ms a job."""
    programs, url, env = _peer(bench, "rq", "rq==2.12.*", "hiredis")
    count = 30 if bench.quick else 60
    command = [str(programs / "rq"), "worker", "anchor", "-u", url, "-q"]

    def measure() -> dict[str, float]:
        with redis.Redis.from_url(url) as client:
            client.flushall()
            subprocess.run(
                [programs / "python", "-m", "true_rq", url, str(count)],
                env=env,
                cwd=bench.directory,
                check=True,
            )
            with process(command, log=bench.directory / "rq.log", env=env, cwd=bench.directory) as worker:
                used: list[float] = []
                rate = _rate(
                    lambda: client.zcard("rq:finished:anchor"), count, lambda: used.append(cpu_s(worker.pid))
                )
                return {"value": rate, "cpu": (used[1] - used[0]) / (count * (1 - _WARM)) * 1000}

    yield measure


def _rate(done: Callable[[], int], count: int, mark: Callable[[], object] = lambda: None) -> float:
    first = int(count * _WARM)
    began = await_count(done, first)
    already = done()
    mark()
    ended = await_count(done, count)
    mark()
    return (count - already) / (ended - began)
