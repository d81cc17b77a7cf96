"""Paths: pure functions."""

from __future__ import annotations

from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from celery_zk_beat.paths import Paths, is_page, is_volume, page_of, quote_name, volume_of


@given(st.text(st.characters()))
def test_any_name_has_a_page(name: str) -> None:
    """Slashes, dots, surrogates, nothing at all: a page is always three hexadecimal digits."""
    assert page_of(name) == page_of(name)
    assert 0 <= int(page_of(name), 16) <= 0xFFF
    assert is_page(page_of(name))
    assert is_volume(volume_of(page_of(name)))


def test_pages_do_not_move() -> None:
    """A release that hashed otherwise would not find the states that the last one wrote."""
    assert [page_of(name) for name in ("", "heartbeat", "a/b", "ü")] == ["e3b", "6b2", "c14", "607"]


@given(st.text(st.characters(), min_size=1))
def test_a_member_is_one_znode(id: str) -> None:
    """Whatever the id holds, it is one component of a path, and not a special one."""
    if any("\ud800" <= character <= "\udfff" for character in id):
        return  # settings refuse what is not printable
    name = Paths("/r").member(id)[len("/r/members/") :]
    assert "/" not in name
    assert name not in ("", ".", "..")


def test_quoting_is_reversible() -> None:
    for name in ("a b", "a/b", "%", "ü", ".", "..", "x" * 300):
        assert unquote(quote_name(name)) == name
        assert "/" not in quote_name(name)
