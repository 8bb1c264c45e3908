"""What `make demo` runs: the whole of Hostler on this machine, and one project's tests on it, from upload to report.

    python examples/demo.py [PROJECT] [--command 'make test']

Needs `hostler` in PATH. Everything it starts is stopped again, and everything it writes is removed.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HELLO = Path(__file__).parent / "hello-project"
ARTIFACTS = ("reports/**", "test-results/**", "junit*.xml")
READY_WITHIN_S = 120.0
STOPPED_WITHIN_S = 60.0
TAIL_LINES = 40
ENVIRON = dict(os.environ)  # noqa: TID251  runs without Hostler's settings, as any of its users' scripts
#: What of the caller's environment would point the demonstration at servers that are not its own.
FOREIGN = re.compile(r"(HOSTLER|REDIS|S3|AWS)_|PORT$|WEB_CONCURRENCY$")


def main() -> int:
    """Run the demonstration and return the job's exit code."""
    parser = argparse.ArgumentParser(description="Run a project's tests on a Hostler of its own.")
    parser.add_argument(
        "project", nargs="?", type=Path, default=HELLO, help="folder (default: hello-project)"
    )
    parser.add_argument("--command", help="what to run in it (default: guessed from what is there)")
    options = parser.parse_args()
    if not options.project.is_dir():
        parser.error(f"{options.project} is not a folder")
    command = options.command or guess(options.project)
    if command is None:
        parser.error(f"it is not plain how {options.project} is tested; say so with CMD='…' or --command '…'")
    if options.command is None and options.project.resolve() != HELLO.resolve():
        tell(f"CMD is not given; from what is in {options.project} it should be: {command}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="hostler-demo-") as folder, Stack(Path(folder)) as stack:
        Path(folder).chmod(0o711)  # jobs run as other users where that can be
        stack.start()
        return show(stack, options.project, command)


def guess(project: Path) -> str | None:
    """Return the command that most likely tests `project`, or None."""
    if (project / "tests/report.py").exists():
        return "python3 -m tests.report"
    package = project / "package.json"
    if package.exists() and "test" in json.loads(package.read_text(encoding="utf-8")).get("scripts", {}):
        return "npm test"
    makefile = project / "Makefile"
    if makefile.exists() and re.search(r"^test\s*:", makefile.read_text(encoding="utf-8"), re.MULTILINE):
        return "make test"
    tests = [
        path
        for pattern in ("test_*.py", "tests/**/test_*.py", "test/**/test_*.py")
        for path in project.glob(pattern)
    ]
    if any("pytest" in path.read_text(encoding="utf-8", errors="replace") for path in tests):
        return "python3 -m pytest"
    return "python3 -m unittest -v" if tests else None


def show(stack: "Stack", project: Path, command: str) -> int:
    """Submit the job, watch it, and look at what it left; nothing but `hostler` commands."""
    started = time.monotonic()
    stack.hostler("login", "--data", str(stack.data))
    wanted = [word for pattern in ARTIFACTS for word in ("--artifact", pattern)]
    code = stack.hostler("submit", command, "--file", str(project), *wanted, "--follow")
    job = stack.ask("jobs", "list", "--quiet", "--limit", "1").strip()
    if not job:
        return code or 1
    stack.hostler("jobs", "show", job)
    header, *rows = stack.ask("jobs", "artifacts", job).splitlines() or [""]
    names = [row[: header.find("SIZE")].strip() for row in rows]
    report = next((name for name in names if name.endswith((".txt", ".md"))), names[0] if names else None)
    if report is not None:
        stack.hostler("jobs", "artifacts", job, report)
    tell(f"Uploaded, run and reported in {time.monotonic() - started:.1f} s; the job's exit code is {code}.")
    return code


class Stack:
    """A `hostler up` in a folder of its own, which is stopped whatever happens."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self._log = folder / "up.log"
        self._program = shutil.which("hostler") or sys.exit(
            "There is no hostler in PATH; make demo puts it there."
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._environ = {name: value for name, value in ENVIRON.items() if not FOREIGN.match(name)}
        # a login in the demonstration is no login of the person who watches it
        self._environ["HOSTLER_CONFIG"] = str(folder / "contexts.json")

    def __enter__(self) -> "Stack":
        return self

    def start(self) -> None:
        """Start everything and wait until it is ready. Exits with the end of its log when it does not become so."""
        words = ["up", "--port", "0", "--data", str(self.data)]
        print_command(words, " &")
        began = time.monotonic()
        with self._log.open("wb") as log:
            # in a group of its own: Ctrl+C in the terminal must not reach it before we are done with it
            self._process = subprocess.Popen(  # noqa: S603  our own program
                [self._program, *words], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=self._environ, start_new_session=True,
            )  # fmt: skip
        told: set[str] = set()
        while True:
            text = self._log.read_text(encoding="utf-8", errors="replace")
            for name in re.findall(r"^(\S+) +\|", text, re.MULTILINE):
                if name not in told:
                    told.add(name)
                    tell(f"{time.monotonic() - began:4.1f} s  {name} is starting")
            if ready := re.search(r"^Hostler is ready at (\S+)", text, re.MULTILINE):
                tell(f"{time.monotonic() - began:4.1f} s  ready at {ready.group(1)}")
                return
            if self._process.poll() is not None or time.monotonic() - began > READY_WITHIN_S:
                tail = "\n".join(text.splitlines()[-TAIL_LINES:])
                sys.exit(f"{tail}\n\nHostler did not become ready; the end of its log is above.")
            time.sleep(0.05)

    def hostler(self, *words: str) -> int:
        """Show a `hostler` command, run it, and return its exit code."""
        print_command(words)
        return self._run(words).returncode

    def ask(self, *words: str) -> str:
        """Show a `hostler` command, run it, show what it prints, and return that."""
        print_command(words)
        answer = self._run(words, stdout=subprocess.PIPE).stdout
        print(answer, end="", flush=True)
        return answer

    def _run(self, words: tuple[str, ...], stdout: int | None = None) -> "subprocess.CompletedProcess[str]":
        command = [self._program, *words]
        return subprocess.run(command, env=self._environ, stdout=stdout, text=True, check=False)  # noqa: S603

    def __exit__(self, *_: object) -> None:
        """Stop everything."""
        if self._process is None or self._process.poll() is not None:
            return
        print_command(["up"], ": Ctrl+C")
        began = time.monotonic()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is being stopped already
        self._process.terminate()
        try:
            self._process.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        tell(f"{time.monotonic() - began:4.1f} s  everything is stopped")


def print_command(words: "list[str] | tuple[str, ...]", after: str = "") -> None:
    """Print a command as it would be typed."""
    line = f"$ hostler {shlex.join(words)}{after}"
    bold = sys.stdout.isatty() and not ENVIRON.get("NO_COLOR")
    print(f"\n\x1b[1m{line}\x1b[0m" if bold else f"\n{line}", flush=True)


def tell(text: str) -> None:
    """Print what is not a command's own output."""
    print(f"  {text}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
