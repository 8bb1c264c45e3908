"""Fixtures for platforms: one of each kind that this machine can have, in a folder that other users can enter."""

import os
import shutil
import tempfile
import uuid
from pathlib import Path

import pytest
from platform_bench import Bench, need


@pytest.fixture(autouse=True)
def _posix():
    if os.name != "posix":
        pytest.skip("these commands need a POSIX shell")


@pytest.fixture
def folder():
    # pytest's tmp_path is closed to other users, and slots are other users
    path = Path(tempfile.mkdtemp(prefix="hostler-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


def _benches(*kinds):
    @pytest.fixture(params=kinds)
    def made(request, folder):
        need(request.param)
        bench = Bench(request.param, folder)
        yield bench
        bench.close()

    return made


bench = _benches("uid", "landlock", "none", "portable")
isolated = _benches("uid", "landlock")
linux = _benches("uid", "landlock", "none")


@pytest.fixture
def mark():
    """A word by which `alive` finds the processes of one test, as the argument of a shell."""
    return f"mark-{uuid.uuid4().hex}"
