"""A peer for running `true`: RQ's default worker, which forks for each job; runs in an environment of its own."""

import subprocess
import sys


def run(_: int) -> tuple[int, str]:
    """Run `true` and keep its exit code and output."""
    done = subprocess.run(["true"], capture_output=True, text=True, check=False)  # noqa: S607  as a user would
    return done.returncode, done.stdout


if __name__ == "__main__":
    import redis
    from rq import Queue

    queue = Queue("anchor", connection=redis.Redis.from_url(sys.argv[1]))
    for number in range(int(sys.argv[2])):
        queue.enqueue("true_rq.run", number)
