"""Questions to apps reach their node once, come back whole, and neither side believes who only has Redis."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import asdict, replace

import orjson
import pytest
import redis

from settings import Settings
from storage import relay
from storage.calls import command
from storage.errors import BadGateway, GatewayTimeout, NotFound, NotRunning, TooLarge, Unavailable
from storage.relay import Ask, Head, answering, ways
from storage.seal import Forged, Seal
from storage.store import Store

NODE = "node-1"


async def mirror(ask: Ask) -> AsyncGenerator[Head | bytes, None]:
    """Answer with the body that came."""
    yield Head(200, (("content-type", "text/x"),))
    yield ask.body


@pytest.fixture
async def stores(settings: Settings) -> AsyncIterator[tuple[Store, Store]]:
    web, node = Store(settings), Store(settings)
    yield web, node
    await web.close()
    await node.close()


@contextlib.asynccontextmanager
async def serving(
    stores: tuple[Store, Store], handle: relay.Handle = mirror, *, slots: int = 8
) -> AsyncIterator[Store]:
    """Serve a node for as long as the context lasts; gives the store of the web's side."""
    web, node = stores
    task = asyncio.create_task(relay.serve(node, NODE, handle, slots=slots))
    await until(lambda: is_there(web))
    try:
        yield web
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def is_there(web: Store) -> bool:
    return await web.call(command("EXISTS", f"h:relay:session:{NODE}")) == 1


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while True:
            result = condition()
            if await result if asyncio.iscoroutine(result) else result:
                return
            await asyncio.sleep(0.01)


async def test_a_body_of_any_size_comes_back_as_it_was(stores):
    async with serving(stores) as web:
        for size_bytes in (0, 1, relay.PIECE_BYTES, relay.PIECE_BYTES + 1, 3_000_000):
            body = os.urandom(size_bytes)
            answer = await relay.request(web, NODE, Ask(app="a", body=body))
            assert (answer.status, answer.header("Content-Type")) == (200, "text/x")
            assert answer.body == body


async def test_many_questions_share_one_subscription_and_none_gets_anothers_answer(stores, redis_client):
    async with serving(stores, slots=4) as web:
        bodies = [str(number).encode() for number in range(100)]
        answers = await asyncio.gather(
            *(relay.request(web, NODE, Ask(app="a", body=body)) for body in bodies)
        )
        assert [answer.body for answer in answers] == bodies
        listening = [each for each in redis_client.client_list() if each["cmd"].startswith("subscribe")]
        assert len(listening) == 2  # one of each side


async def test_nothing_of_an_exchange_stays_in_redis(stores, redis_client):
    async with serving(stores) as web:
        await relay.request(web, NODE, Ask(app="a", body=os.urandom(500_000)))
        await until(lambda: redis_client.keys("h:relay:*") == [f"h:relay:session:{NODE}".encode()])
    assert redis_client.keys("h:relay:*") == []


async def test_what_goes_wrong_on_the_node_is_raised_where_it_was_asked(stores):
    async def refuse(ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        if ask.path == "/bug":
            raise RuntimeError("a secret")
        yield Head(200)
        raise {"/gone": NotFound, "/down": NotRunning}[ask.path](f"no {ask.path}")

    async with serving(stores, refuse) as web:
        for path, error in (("/gone", NotFound), ("/down", NotRunning)):
            with pytest.raises(error, match=f"^no {path}$"):
                await relay.request(web, NODE, Ask(app="a", path=path))
        with pytest.raises(BadGateway) as found:
            await relay.request(web, NODE, Ask(app="a", path="/bug"))
        assert "secret" not in str(found.value)


async def test_a_node_that_is_not_there_is_told_at_once_and_one_that_died_soon(stores, monkeypatch):
    monkeypatch.setattr(ways, "POLL_S", 0.3)
    monkeypatch.setattr("storage.relay.asking.TAKEN_WITHIN_S", 0.5)
    web, _ = stores
    with pytest.raises(Unavailable, match="offline"):
        await relay.request(web, NODE, Ask(app="a"))
    await web.call(command("SET", f"h:relay:session:{NODE}", "killed", "PX", 10_000))
    async with asyncio.timeout(2):
        with pytest.raises(Unavailable, match="does not take"):
            await relay.request(web, NODE, Ask(app="a"))


async def test_what_somebody_has_spoilt_in_redis_holds_a_node_up_only_until_it_is_mended(
    stores, redis_client, monkeypatch
):
    monkeypatch.setattr(answering, "POLL_S", 0.05)
    monkeypatch.setattr(answering, "SAY_S", 0.05)
    async with serving(stores) as web:
        redis_client.set(f"h:relay:asks:{NODE}", "no list")
        redis_client.delete(f"h:relay:session:{NODE}")
        await until(lambda: is_there(web))
        await asyncio.sleep(0.2)  # it has looked by then
        redis_client.delete(f"h:relay:asks:{NODE}")
        assert (await relay.request(web, NODE, Ask(app="a", body=b"x"))).body == b"x"


async def test_limits_of_size_hold_on_both_sides(stores):
    async def flood(ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        yield Head(200)
        while True:
            yield b"x" * 10_000

    async with serving(stores, flood) as web:
        with pytest.raises(TooLarge):
            await relay.request(web, NODE, Ask(app="a", body=b"x" * 11, limit_bytes=10))
        with pytest.raises(BadGateway, match="more than 1000000 bytes"):
            await relay.request(web, NODE, Ask(app="a", limit_bytes=1_000_000))


async def test_an_app_that_is_slow_or_drips_is_given_up_in_time(stores):
    async def drip(ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        yield Head(200)
        while True:
            await asyncio.sleep(0.02)
            yield b"x"

    async with serving(stores, drip) as web:
        with pytest.raises(GatewayTimeout, match=r"within 0\.3 s"):
            await relay.request(web, NODE, Ask(app="a", timeout_s=0.3))


async def test_who_stops_waiting_stops_the_work_and_leaves_nothing_in_the_queue(stores, redis_client):
    at_work: list[Ask] = []
    stopped: list[Ask] = []

    async def wait(ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        at_work.append(ask)
        try:
            await asyncio.Event().wait()
            yield Head(200)
        finally:
            stopped.append(ask)

    async with serving(stores, wait, slots=2) as web:
        asking = [asyncio.create_task(relay.request(web, NODE, Ask(app=str(number)))) for number in range(6)]
        await until(lambda: len(at_work) == 2 and redis_client.llen(f"h:relay:asks:{NODE}") == 4)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await until(lambda: len(stopped) == 2 and redis_client.llen(f"h:relay:asks:{NODE}") == 0)
        assert len(at_work) == 2  # what nobody waited for was never begun


async def test_an_app_that_hangs_does_not_take_all_that_its_node_can_do(stores, monkeypatch):
    monkeypatch.setattr(answering, "APP_SLOTS", 2)
    at_work: list[Ask] = []

    async def hang(ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        at_work.append(ask)
        if ask.app == "hangs":
            await asyncio.Event().wait()
        yield Head(200)

    async with serving(stores, hang, slots=3) as web:
        asking = [asyncio.create_task(relay.request(web, NODE, Ask(app="hangs"))) for _ in range(2)]
        await until(lambda: len(at_work) == 2)
        with pytest.raises(Unavailable, match="too much at once"):
            await relay.request(web, NODE, Ask(app="hangs"))
        assert (await relay.request(web, NODE, Ask(app="well"))).status == 200
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_more_questions_than_may_wait_are_refused(stores, redis_client, monkeypatch):
    monkeypatch.setattr("storage.relay.asking.MOST_WAITING", 3)
    monkeypatch.setattr(ways, "POLL_S", 0.3)
    web, _ = stores
    await web.call(command("SET", f"h:relay:session:{NODE}", "slow", "PX", 10_000))
    asking = [asyncio.create_task(relay.request(web, NODE, Ask(app="a"))) for _ in range(5)]
    said = [str(error) for error in await asyncio.gather(*asking, return_exceptions=True)]
    assert said.count(f"Node {NODE} is asked too much at once.") == 2


# Who only has Redis


async def answered(stores, forge: Callable[[str, str], None], redis_client) -> list[Ask]:
    """Return what a node took while somebody wrote to Redis what `forge` makes of its session."""
    taken: list[Ask] = []

    async def note(ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        taken.append(ask)
        yield Head(200)

    async with serving(stores, note) as web:
        session = redis_client.get(f"h:relay:session:{NODE}").decode()
        forge(session, "0" * 32)
        await relay.request(web, NODE, Ask(app="the real one"))
    return taken


def written(redis_client: redis.Redis, ask_id: str, sealed: str) -> None:
    """Put a question into the queue as somebody who only has Redis would."""
    redis_client.set(f"h:relay:open:{ask_id}", "open")
    redis_client.rpush(f"h:relay:asks:{NODE}", f"{ask_id} {sealed}")
    redis_client.publish(f"h:relay:asks:{NODE}", "ask")


def sealed(seal: Seal, ask: Ask, session: str, ask_id: str, *, until_ms: int) -> str:
    """Seal a question; the one who asks does the same."""
    fields = asdict(ask)
    fields.pop("body")
    head = {"ask": fields, "until": until_ms, "reply_to": "h:relay:answers:x", "whole": True}
    return seal.encrypt("relay question", orjson.dumps(head) + b"\n", bound_to=f"{NODE} {session} {ask_id}")


@pytest.mark.parametrize("how", ["another key", "another session", "another id", "too late", "no seal"])
async def test_a_question_that_was_not_asked_is_not_answered(stores, settings, redis_client, how):
    def forge(session: str, ask_id: str) -> None:
        key = settings.secret_key if how != "another key" else "another-key-" + "z9y8" * 10
        now_ms = stores[0].now_ms()
        blob = sealed(
            Seal(key), Ask(app="forged"), "f" * 32 if how == "another session" else session,
            "1" * 32 if how == "another id" else ask_id,
            until_ms=now_ms - 120_000 if how == "too late" else now_ms + 30_000,
        )  # fmt: skip
        written(redis_client, ask_id, "bm90aGluZw==" if how == "no seal" else blob)

    assert [ask.app for ask in await answered(stores, forge, redis_client)] == ["the real one"]


async def test_a_question_that_is_put_back_is_answered_once(stores, redis_client):
    taken: list[str] = []

    async def note(ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        taken.append(ask.app)
        yield Head(200)

    async with serving(stores, note) as web:
        session, ask_id = redis_client.get(f"h:relay:session:{NODE}").decode(), "0" * 32
        blob = sealed(web.seal, Ask(app="once"), session, ask_id, until_ms=web.now_ms() + 30_000)
        for _ in range(3):
            written(redis_client, ask_id, blob)
            await until(lambda: redis_client.get(f"h:relay:open:{ask_id}") == b"taken")
        await relay.request(web, NODE, Ask(app="the real one"))
    assert taken == ["once", "the real one"]


async def test_a_forged_answer_is_not_believed(stores, settings, redis_client):
    web, _ = stores
    await web.call(command("SET", f"h:relay:session:{NODE}", "mine", "PX", 10_000))
    asking = asyncio.create_task(relay.request(web, NODE, Ask(app="a", timeout_s=5)))
    await until(lambda: redis_client.llen(f"h:relay:asks:{NODE}") == 1)
    ask_id = redis_client.lindex(f"h:relay:asks:{NODE}", 0).split(b" ")[0].decode()
    other = replace(settings, secret_key="another-key-" + "z9y8" * 10)
    forged = Seal(other.secret_key).encrypt("relay answer", b'+{"status":200,"headers":[]}', bound_to="x")
    redis_client.rpush(f"h:relay:answer:{ask_id}", forged)
    channel = next(each for each in redis_client.pubsub_channels() if b"answers" in each)
    redis_client.publish(channel, ask_id)
    with pytest.raises(BadGateway, match="not its node's"):
        await asking


async def test_an_answer_moved_to_another_question_is_not_believed(stores, redis_client):
    web, _ = stores
    async with serving(stores, mirror):
        session = redis_client.get(f"h:relay:session:{NODE}").decode()
        moved = web.seal.encrypt(
            "relay answer", b'+{"status":200,"headers":[]}', bound_to=f"{NODE} {session} {'2' * 32} answer 0"
        )
        way = ways.Way(web, "answer", "3" * 32, f"{NODE} {session} {'3' * 32}")
        redis_client.rpush(f"h:relay:answer:{'3' * 32}", moved)
        with pytest.raises(Forged):
            await anext(way.pieces())
