"""A peer for running `true`: Celery's prefork workers, the result kept; runs in an environment of its own."""

import subprocess
import sys

from celery import Celery

app = Celery("true_celery")


@app.task  # type: ignore[untyped-decorator]  # Celery is not installed here
def run(_: int) -> tuple[int, str]:
    """Run `true` and keep its exit code and output."""
    done = subprocess.run(["true"], capture_output=True, text=True, check=False)  # noqa: S607  as a user would
    return done.returncode, done.stdout


if __name__ == "__main__":
    app.conf.update(broker_url=sys.argv[1], result_backend=sys.argv[1])
    for number in range(int(sys.argv[2])):
        app.send_task("true_celery.run", [number])
