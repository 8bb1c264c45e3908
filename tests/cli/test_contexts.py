"""Which server a command talks to, and that a saved secret goes nowhere else."""

import os
import stat
import threading
from pathlib import Path

import pytest

from cli.contexts import Contexts, clean_url
from cli.failures import Failed

HERE, THERE = "http://127.0.0.1:8080", "https://hostler.example.com"


@pytest.fixture
def contexts(tmp_path: Path) -> Contexts:
    return Contexts({"HOSTLER_CONFIG": str(tmp_path / "deep" / "contexts.json")})


def test_options_go_before_the_environment_and_that_before_what_was_saved(contexts: Contexts) -> None:
    contexts.save("default", url=HERE, secret="cb_saved", email=None)
    environ = {"HOSTLER_URL": THERE, "HOSTLER_API_KEY": "cb_environ"}
    assert contexts.server(environ, url=HERE, api_key="cb_option").secret == "cb_option"
    assert contexts.server(environ, url=None, api_key=None).url == THERE
    assert contexts.server(environ, url=None, api_key=None).secret == "cb_environ"
    assert contexts.server({}, url=None, api_key=None).secret == "cb_saved"


def test_a_saved_secret_is_sent_to_the_address_it_was_saved_for_alone(contexts: Contexts) -> None:
    contexts.save("default", url=HERE, secret="cb_saved", email=None)
    with pytest.raises(Failed, match=f"Nothing is known that opens {THERE}") as failed:
        contexts.server({}, url=THERE, api_key=None)
    assert "hostler login" in failed.value.hint
    with pytest.raises(Failed):
        contexts.server({"HOSTLER_URL": THERE}, url=None, api_key=None)
    assert contexts.server({}, url=f"{HERE}/api/", api_key=None).secret == "cb_saved"


def test_an_address_finds_its_secret_among_several_contexts(contexts: Contexts) -> None:
    contexts.save("home", url=HERE, secret="cb_home", email=None)
    contexts.save("work", url=THERE, secret="cb_work", email=None)
    found = contexts.server({}, url=HERE, api_key=None)
    assert (found.secret, found.context) == ("cb_home", "home")


def test_a_context_is_chosen_by_its_name(contexts: Contexts) -> None:
    contexts.save("home", url=HERE, secret="cb_home", email=None)
    contexts.save("work", url=THERE, secret="cb_work", email=None)
    for name, url in (("home", HERE), ("work", THERE)):
        chosen = Contexts({"HOSTLER_CONFIG": str(contexts.path), "HOSTLER_CONTEXT": name})
        assert chosen.server({}, url=None, api_key=None).url == url
    unknown = Contexts({"HOSTLER_CONFIG": str(contexts.path), "HOSTLER_CONTEXT": "nowhere"})
    with pytest.raises(Failed, match="'nowhere'"):
        unknown.server({}, url=None, api_key=None)


def test_without_any_server_the_failure_says_how_to_log_in(contexts: Contexts) -> None:
    with pytest.raises(Failed, match="not known which server") as failed:
        contexts.server({}, url=None, api_key="cb_key")
    assert failed.value.hint.startswith("hostler login --url")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_the_file_is_for_its_owner_alone(contexts: Contexts) -> None:
    contexts.save("default", url=HERE, secret="cb_saved", email=None)
    assert stat.S_IMODE(contexts.path.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_understood_is_said_so(contexts: Contexts) -> None:
    contexts.path.parent.mkdir(parents=True)
    for content in ("{", "[]", "{}", '{"contexts": 3}'):
        contexts.path.write_text(content)
        with pytest.raises(Failed, match="cannot be understood"):
            contexts.load()


def test_commands_that_save_at_once_lose_nothing(contexts: Contexts) -> None:
    names = [f"c{number}" for number in range(12)]
    threads = [
        threading.Thread(
            target=contexts.save, args=(name,), kwargs={"url": HERE, "secret": name, "email": None}
        )
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(contexts.load()["contexts"]) == sorted(names)


def test_a_forgotten_server_is_gone_and_forgetting_may_be_repeated(contexts: Contexts) -> None:
    contexts.save("default", url=HERE, secret="cb_saved", email=None)
    contexts.forget("default")
    contexts.forget("default")
    assert contexts.load()["contexts"] == {}


def test_an_address_without_a_scheme_is_refused() -> None:
    assert clean_url("http://h:1/api") == "http://h:1"
    with pytest.raises(Failed, match="http://"):
        clean_url("h:1")
