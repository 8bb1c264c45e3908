"""What is remembered of an app: what another version wrote differently costs no more than itself."""

import dataclasses
import logging
from pathlib import Path

import orjson
import pytest

from storage.apps.history import Run
from workers.supervisor.state import Memory, read

RUN = Run("r1", "sync", 0, 1_000, 2_000, 0, None, "schedule")


def test_what_was_written_is_read_as_it_was(tmp_path: Path) -> None:
    memory = Memory(wish=b"\x00signed", phase="running", boot="b", acted_on={"web": 2}, untold=[RUN])
    memory.write(tmp_path / "state.json")
    assert read(tmp_path / "state.json") == memory


def test_a_run_that_another_version_wrote_is_left_out_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.json"
    Memory(wish=b"signed", phase="running", boot="b", untold=[RUN]).write(path)
    fields = orjson.loads(path.read_bytes())
    fields["untold"].insert(0, {**dataclasses.asdict(RUN), "weather": "fine"})
    path.write_bytes(orjson.dumps(fields))
    with caplog.at_level(logging.ERROR):
        memory = read(path)
    assert memory is not None
    assert memory.wish == b"signed"
    assert memory.untold == [RUN]
    assert "weather" in caplog.records[0].__dict__["why"]


def test_what_is_no_memory_at_all_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(b"{")
    assert read(tmp_path / "state.json") is None
    assert read(tmp_path / "missing.json") is None
