"""What a refusal says in each dialect, however long that was which it refuses."""

import orjson
import pytest

from api.dialect import CBOX, CONTEXTBAY, CUBY, EXECUTOR, SQUAREBERG, Dialect, InvalidQuery
from storage.errors import Invalid, NotFound

DIALECTS = [CBOX, CONTEXTBAY, CUBY, EXECUTOR, SQUAREBERG]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
def test_a_long_name_is_shown_by_both_ends_of_its_sentence(dialect: Dialect) -> None:
    body = dialect.error(NotFound(f"There is no app '{'x' * 14_000}' on this node."), 404)
    said = body.get("message") or body["error"]
    assert said.startswith("There is no app 'xxx")
    assert said.endswith("xxx' on this node.")
    assert len(said) < 1000
    assert len(orjson.dumps(body)) < 2500


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
def test_of_thousands_of_wrong_items_some_are_named_and_the_others_counted(dialect: Dialect) -> None:
    details: dict[str, object] = {f"jobs[{n}].{'y' * 2000}": "Unknown field. " * 100 for n in range(3000)}
    body = dialect.error(Invalid("jobs[0]: Unknown field.", details=details), 400)
    assert len(orjson.dumps(body)) < 16_000
    if dialect is CBOX:
        assert body == {"error": "invalid request body"}
        return
    assert (len(body["details"]), body["furtherDetails"]) == (20, 2980)
    assert next(iter(body["details"])).startswith("jobs[0].y")


def test_what_is_short_is_said_as_it_is() -> None:
    body = CUBY.error(Invalid("a: no", details={"a": "no", "b": ["x"] * 3}), 400)
    assert body == {"error": "a: no", "code": "INVALID_REQUEST", "details": {"a": "no", "b": ["x"] * 3}}


def test_cbox_init_s_phrase_about_bodies_is_not_said_of_a_query() -> None:
    assert CBOX.error(InvalidQuery("limit: twice"), 400) == {"error": "limit: twice"}
