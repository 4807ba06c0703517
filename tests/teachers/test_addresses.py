"""Where the file of an address lies in the cache, and the addresses that have no place there."""

from __future__ import annotations

import pytest

from deqgen.teachers.download import cached_path, fetch, is_url


def test_servers_on_other_ports_are_other_servers() -> None:
    usual = cached_path("https://example.com/x.pkl")
    assert cached_path("https://example.com:443/x.pkl") == usual
    other = cached_path("https://example.com:8443/x.pkl")
    assert other.parent.parent == usual.parent.parent and other.parent.name == "example.com+8443"


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/x.pkl",
        "ftp://example.com/x.pkl",
        "file:///etc/hostname",
        "https:///x.pkl",
        "https://example.com/",
        "https://example.com/x.pkl?download=1",
        "https://example.com/../x.pkl",
        "https://example.com/a%2f..%2fx.pkl",
        "https://example.com/a/%00.pkl",
        "https://../evil.pkl",
        "https://..%2f/evil.pkl",
        "https://a..b/evil.pkl",
        "https://-/evil.pkl",
        "https://[::1/x.pkl",
        "https://example.com:port/x.pkl",
        "https://me:secret@example.com/x.pkl",
        "https://me@example.com/x.pkl",
        "https://example.com/x.pkl.sha256",
        "https://example.com/x.pkl.PART",
        "https://example.com/x.pkl.part.tag",
        "https://example.com/x.pkl.rejected",
        "https://example.com/x.pkl.part/y.pkl",
        "https://example.com/" + "x" * 300 + ".pkl",
        "https://example.com/" + "é" * 120 + ".pkl",
    ],
)
def test_addresses_that_are_refused(url: str) -> None:
    assert is_url(url)
    with pytest.raises(ValueError, match=r"address") as caught:
        fetch(url)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 300 and "secret" not in said
