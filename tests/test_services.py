"""What a service can do to its clients, and what they do about it."""

import asyncio
import gzip
import json
import zlib

import httpx2
import pytest

from nlf.errors import UserError
from nlf.services import (
    MOST_BYTES,
    Rejected,
    Retry,
    Waits,
    api_url,
    checked_url,
    new_client,
    post,
    said,
    timed,
)

GOOD = {"results": [1]}


def answered(content, status=200, seconds=60.0, **headers) -> dict:
    """What `post` makes of an answer; the content is bytes, or an async iterator of them."""
    stream = streamed(content) if isinstance(content, bytes) else content

    async def ask():
        response = httpx2.Response(status, content=stream, headers=headers)
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(lambda request: response)) as client:
            return await timed(post(client, "http://host/v1", {}), seconds)

    return asyncio.run(ask())


async def streamed(content: bytes):
    for i in range(0, len(content), 2**16):
        yield content[i : i + 2**16]


async def endless():
    while True:
        yield b" " * 2**16


def test_a_gzip_bomb_is_not_unpacked():
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(b" " * 2**20) for _ in range(30)) + packer.flush()  # 30 MB in 30 kB
    with pytest.raises(Retry, match="an answer of more than 8 MB"):
        answered(bomb, **{"content-encoding": "gzip"})


def test_an_endless_answer_is_cut():
    with pytest.raises(Retry, match="an answer of more than 8 MB"):
        answered(endless())


def test_an_answer_of_the_largest_size_is_read():
    text = json.dumps(GOOD).encode()
    assert answered(text + b" " * (MOST_BYTES - len(text))) == GOOD


def test_a_server_that_compresses_without_being_asked_is_read():
    text = json.dumps(GOOD).encode()
    assert answered(gzip.compress(text), **{"content-encoding": "gzip"}) == GOOD
    assert answered(zlib.compress(text), **{"content-encoding": "deflate"}) == GOOD
    with pytest.raises(Retry, match="an encoding that was not asked for"):
        answered(text, **{"content-encoding": "br"})
    with pytest.raises(Retry, match="cannot be decompressed"):
        answered(text, **{"content-encoding": "gzip"})


def test_no_compression_is_asked_for():
    assert new_client().headers["accept-encoding"] == "identity"


def test_a_body_that_comes_in_drops_is_given_up():
    async def drops():
        while True:
            yield b" "
            await asyncio.sleep(0.001)

    with pytest.raises(Retry, match="TimeoutError"):
        answered(drops(), seconds=0.02)


@pytest.mark.parametrize(
    "body",
    [b"", b"[1]", b"null", b'"x"', b"{", b"\xff", b'{"a":' * 100_000, b'{"a":' * 200 + b"1" + b"}" * 200, b"1" * 9999],
)
def test_what_is_no_json_object_or_too_deep_is_tried_again(body):
    with pytest.raises(Retry, match="invalid JSON"):
        answered(body)
    with pytest.raises(Rejected) as caught:
        answered(body, status=400)
    assert caught.value.payload == {}


def test_utf16_is_read_and_numbers_that_are_none_become_none():
    assert answered(json.dumps(GOOD).encode("utf-16")) == GOOD
    assert answered(b'{"a": NaN, "b": [1e999, -Infinity, 0.5]}') == {"a": None, "b": [None, None, 0.5]}


def test_an_error_keeps_what_the_service_said_and_asks_for():
    with pytest.raises(Retry, match="HTTP 429") as caught:
        answered(b'{"error": {"code": "quota"}}', status=429, **{"retry-after": "7"})
    assert caught.value.after == 7.0 and caught.value.answer.payload == {"error": {"code": "quota"}}


def test_what_a_service_says_is_one_line_without_keys_and_control_characters():
    assert said({"error": {"message": "no\nkey \x1b[31msk-1234567890\x07"}}, ["sk-1234567890"]) == "no key [31m[key]"
    assert (
        said({}) == "no reason given"
        and said({"detail": ["x"]}) == "['x']"
        and len(said({"message": "x" * 999})) == 200
    )


def test_short_waits_are_not_announced(caplog):
    Waits("who")(Retry("HTTP 429", 9.0))
    Waits("who")(Retry("HTTP 500"))
    assert not caplog.text
    with pytest.raises(UserError, match="who: the service asks to wait more than 1e12 seconds"):
        Waits("who")(Retry("HTTP 429", 1e300))


WRONG = [
    *("http://127.0.0.1:99999/v1", "http://127.0.0.1:80a/v1", "http://[::1", "http://[::1]x:80", "http://h:0", "http://h:-1"),
    *("http://h: 80", "http://", "http:///v1", "h:80", "ftp://h", "http:/h", "http://a..b", "http://.a", "http://-a", "http://"),
    *("http://" + "a" * 64, "http://" + "a." * 127 + "b", "http://1.2.3.4.5:x", "http://a\\b", "http://%41", "http://h/\x00"),
    *("http://user:pass@h", "http://h?key=1", "http://h#x", "http://a b", "http://h:\uff18\uff10", "http://999.1.1.1.:1:1", ""),
]  # fmt: skip


@pytest.mark.parametrize("url", WRONG)
def test_an_address_that_nobody_can_connect_to_is_refused(url):
    with pytest.raises(UserError, match=r"WHERE: expected http\(s\)://host") as caught:
        checked_url(url, "WHERE")
    assert "pass" not in str(caught.value) and "key=1" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://h", "https://a-b.c_d.:443", "http://[::1]:80", "http://é.de", "http://1.2.3.4:65535", "http://h:"]
)
def test_good_addresses(url):
    assert checked_url(f"{url}/x/", "") == f"{url}/x" and api_url(url, "") == f"{url}/v1"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("http_proxy", "http://user:pass@h:99999", "HTTP_PROXY: expected http://host:port"),
        ("https_proxy", "http://user:pass@h:x", "HTTPS_PROXY: expected"),
        ("all_proxy", "http://[::1", "ALL_PROXY: expected"),
        ("http_proxy", "ftp://user:pass@h:1", "environment .ValueError.: check HTTP_PROXY"),
        ("SSL_CERT_FILE", "/nowhere", "check HTTP_PROXY.* and SSL_CERT_FILE"),
    ],
)
def test_a_proxy_or_certificate_that_cannot_be_used_is_named_without_its_password(monkeypatch, name, value, told):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told) as caught:
        new_client()
    assert "pass" not in str(caught.value)


def test_good_proxies(monkeypatch):
    for proxy in ("http://user:p%40ss@h:1", "h:1", "https://h"):
        monkeypatch.setenv("https_proxy", proxy)
        assert new_client()
