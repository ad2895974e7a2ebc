import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmgr.errors import UsageError
from vmgr.machine import names
from vmgr.machine.names import check_name, make_up_name


@pytest.mark.parametrize("name", ["a", "0", "a-", "web-1", "9lives", "a" * 63, "xn--bcher-kva"])
def test_accepts(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "-a", "A", "web_1", "a.b", "a b", "a\n", "\na", "ä", "٣", "a" * 64, "../a", "a/b", "a\0"],
)
def test_refuses(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name(name)
    assert caught.value.message == f"{name!r} cannot be a machine's name"
    assert caught.value.next_step == (
        "use 1 to 63 of a-z, 0-9 and -, beginning with a letter or digit"
    )


def test_the_error_repeats_only_the_beginning_of_a_long_name() -> None:
    with pytest.raises(UsageError) as caught:
        check_name("A" * 1_000_000)
    assert len(str(caught.value)) < 300


@given(st.text(max_size=70))
def test_agrees_with_the_rule_spelled_out(name: str) -> None:
    first = set("abcdefghijklmnopqrstuvwxyz0123456789")
    fine = 1 <= len(name) <= 63 and name[0] in first and set(name) <= first | {"-"}
    if fine:
        check_name(name)
    else:
        with pytest.raises(UsageError):
            check_name(name)


def test_made_up_names_are_valid_and_free() -> None:
    taken: set[str] = set()
    for _ in range(500):
        name = make_up_name(taken)
        check_name(name)
        assert name not in taken
        taken.add(name)


def test_a_name_is_made_up_also_when_all_pairs_are_taken() -> None:
    every_pair = {f"{a}-{n}" for a in names._ADJECTIVES for n in names._NOUNS}
    name = make_up_name(every_pair)
    check_name(name)
    assert name not in every_pair


def test_no_word_is_listed_twice() -> None:
    for words in (names._ADJECTIVES, names._NOUNS):
        assert len(set(words)) == len(words)
