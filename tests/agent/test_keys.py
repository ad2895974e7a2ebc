from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmgr.agent.events import HelloReceived
from vmgr.agent.keys import FIRST_KEY, MemoryKeyStore, fresh_key, next_key
from vmgr.agent.session import Session

from .peer import ModelAgent


async def prepared(store: MemoryKeyStore) -> tuple[Session, bytes]:
    """A session that has written its chain of hellos, as the channel does it."""
    candidates = await store.candidates()
    key, is_new = next_key(candidates)
    if is_new:
        await store.store_next(key)
    session = Session("test")
    session.start(candidates, key)
    return session, key


def chain(session: Session) -> bytes:
    return b"".join(session.take_output())


async def test_the_first_hello_uses_the_fixed_key_and_names_another() -> None:
    store = MemoryKeyStore()
    session, key = await prepared(store)
    agent = ModelAgent(FIRST_KEY)
    agent.receive(chain(session))
    assert agent.key == key != FIRST_KEY
    session.receive(agent.out)
    assert isinstance(session.next_event(), HelloReceived)


@pytest.mark.parametrize("lost", [0, 1, 2, 14, 15, 16, 40])
async def test_any_number_of_helpers_may_die_before_their_hello_arrives(lost: int) -> None:
    store = MemoryKeyStore()
    agent = ModelAgent(FIRST_KEY)
    for _ in range(lost):
        await prepared(store)
    session, key = await prepared(store)
    agent.receive(chain(session))
    session.receive(agent.out)
    assert isinstance(session.next_event(), HelloReceived)
    assert agent.key == key
    assert len(store.keys) <= 16


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=8), st.data())
async def test_helpers_may_die_at_any_byte_of_it(
    deaths: list[tuple[float, bool]], data: st.DataObject
) -> None:
    """Whatever part of each chain arrived, and whether the answer did: the next one works."""
    store = MemoryKeyStore()
    agent = ModelAgent(FIRST_KEY)
    for fraction, answered in deaths:
        session, key = await prepared(store)
        sent = chain(session)
        agent.receive(sent[: round(len(sent) * fraction)])
        session.receive(agent.out)
        agent.out = b""
        if answered and isinstance(session.next_event(), HelloReceived):
            await store.confirm(key)
            session.ping(b"p" * 40)
            agent.receive(chain(session)[: data.draw(st.integers(0, 52), label="cut")])
    session, key = await prepared(store)
    sent = chain(session)
    while sent:
        size = data.draw(st.integers(1, len(sent)))
        agent.receive(sent[:size])
        sent = sent[size:]
    session.receive(agent.out)
    assert isinstance(session.next_event(), HelloReceived)
    assert agent.key == key
    assert len(store.keys) <= 16


@pytest.mark.parametrize("holder", range(16))
async def test_the_chain_reaches_an_agent_that_holds_any_of_its_keys(holder: int) -> None:
    store = MemoryKeyStore()
    for _ in range(15):
        await prepared(store)
    agent = ModelAgent(store.keys[holder])
    session, key = await prepared(store)
    agent.receive(chain(session))
    session.receive(agent.out)
    assert isinstance(session.next_event(), HelloReceived)
    assert agent.key == key


@pytest.mark.parametrize("missing", range(1, 40))
async def test_a_hello_that_another_completes_names_no_wrong_key(missing: int) -> None:
    """A helper died within its last hello; what the next one writes first fills the gap."""
    store = MemoryKeyStore()
    agent = ModelAgent(FIRST_KEY)
    await prepared(store)  # its hello is lost: two keys may be right from here on
    session, _ = await prepared(store)
    agent.receive(chain(session)[:-missing])
    session, key = await prepared(store)
    agent.receive(chain(session))
    session.receive(agent.out)
    assert isinstance(session.next_event(), HelloReceived)
    assert agent.key == key


async def test_a_long_list_of_candidates_leads_back_to_a_secret_one() -> None:
    store = MemoryKeyStore()
    for _ in range(20):
        _, key = await prepared(store)
    assert key in store.keys
    assert key != FIRST_KEY
    assert key != store.keys[-1], "the last hello would name the marker before it"


def test_keys_begin_with_a_byte_that_ends_no_message() -> None:
    """Else the agent would hold back every 256th message as a possible marker."""
    assert {fresh_key()[0] for _ in range(100)} == {0xC1}
    assert len({fresh_key() for _ in range(100)}) == 100
