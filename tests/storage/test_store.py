"""The ids that a store gives."""

from typing import cast

import pytest

from storage.admission import Known
from storage.carrying import Carrier
from storage.store import Store


def ids(store: Store, count: int) -> list[str]:
    return [store.new_id("job") for _ in range(count)]


async def test_ids_of_one_process_sort_by_creation_also_within_a_millisecond(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, now_ms = ids(store, 300), store.now_ms()
    monkeypatch.setattr(store, "now_ms", lambda: now_ms)
    found += ids(store, 300)
    assert found == sorted(set(found))


async def test_ids_go_on_sorting_while_the_clock_goes_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, an_hour_ago = ids(store, 3), store.now_ms() - 3_600_000
    monkeypatch.setattr(store, "now_ms", lambda: an_hour_ago)
    found += ids(store, 300)
    assert found == sorted(set(found))


async def test_an_id_does_not_tell_the_next_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "now_ms", lambda: 0)  # all are of one millisecond
    found = ids(store, 50)
    assert len({each[:-4] for each in found}) == 50  # between two lie a million or more


async def test_the_ids_of_all_requests_of_a_process_sort_together(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms = store.now_ms()
    monkeypatch.setattr(store, "now_ms", lambda: now_ms)
    carriers = [Carrier(store, cast("Known", None), lambda admission: None) for _ in range(100)]
    found = [carrier.new_id("job") for carrier in carriers]
    assert found == sorted(set(found))
