"""Downloads from a server on this machine, which can fail in the ways that servers do."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from deqgen import cli
from deqgen.teachers import available_teachers, load_teacher, published
from deqgen.teachers import download as room
from deqgen.teachers.download import DownloadError, cached_path, fetch

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """What it sends, and what it was asked."""

    content = CONTENT
    tag: str | None = '"one"'
    stop_after: int | None = None  # bytes, after which the connection breaks
    status = 200
    location = ""
    reply: Callable[[Handler, str | None], bool] | None = None  # whether it has answered
    ranges: ClassVar[list[str | None]] = []
    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.ranges.append(asked)
        if server.reply and server.reply(self, asked):
            return
        if server.location:
            self.send_response(302)
            self.send_header("Location", server.location)
            self.end_headers()
            return
        if server.status != 200:
            self.send_error(server.status)
            return
        start = 0
        if asked and self.headers.get("If-Range") == server.tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            last = len(server.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(server.content)}")
        if server.tag:
            self.send_header("ETag", server.tag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.stop_after])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("DEQGEN_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.ranges.clear()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def address(server: Server, name: str = "a/x.pkl") -> str:
    return f"http://127.0.0.1:{server.server_port}/{name}"


def beside(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()}


def test_a_file_is_downloaded_once_and_recorded(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fetch(address(server), notice="some licence")
    folder = tmp_path / "cache" / f"127.0.0.1+{server.server_port}"
    assert path == folder / "a" / "x.pkl" == cached_path(address(server))
    assert path.read_bytes() == CONTENT and beside(path) == {"x.pkl", "x.pkl.sha256"}
    assert path.with_name("x.pkl.sha256").read_text() == f"{SHA256}  x.pkl\n"
    assert "some licence" in capsys.readouterr().err
    assert fetch(address(server), size=len(CONTENT), sha256=SHA256, notice="some") == path
    assert server.ranges == [None] and not capsys.readouterr().err


def test_a_download_goes_on_where_it_stopped(server: Server) -> None:
    server.stop_after = 1000
    path = cached_path(address(server))
    with pytest.raises(DownloadError, match=r"ended after 1,000 of 10,240 bytes"):
        fetch(address(server))
    assert not path.exists() and beside(path) == {"x.pkl.part", "x.pkl.part.tag"}
    with pytest.raises(DownloadError, match=r"ended after 2,000 of 10,240 bytes"):
        fetch(address(server))
    server.stop_after = None
    assert fetch(address(server)).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=2000-"]
    assert beside(path) == {"x.pkl", "x.pkl.sha256"}


def test_a_download_that_was_killed_at_its_end_is_not_repeated(server: Server) -> None:
    path = cached_path(address(server))
    path.parent.mkdir(parents=True)
    path.with_name("x.pkl.part").write_bytes(CONTENT)
    path.with_name("x.pkl.part.tag").write_text('"one"')
    assert fetch(address(server)).read_bytes() == CONTENT
    assert server.ranges == ["bytes=10240-"]


@pytest.mark.parametrize("tag", ['"two"', None, 'W/"one"'])
def test_another_version_is_downloaded_from_its_beginning(server: Server, tag: str | None) -> None:
    server.stop_after = 1000
    with pytest.raises(DownloadError):
        fetch(address(server))
    server.content, server.tag, server.stop_after = CONTENT[::-1], tag, None
    assert fetch(address(server)).read_bytes() == CONTENT[::-1]


def test_a_kill_never_leaves_an_old_part_with_a_new_version(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.stop_after = 1000
    with pytest.raises(DownloadError):
        fetch(address(server))
    server.content, server.tag, server.stop_after = CONTENT[::-1], '"two"', None
    with monkeypatch.context() as killed:
        killed.setattr(room, "_receive", _killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(address(server))
    assert fetch(address(server)).read_bytes() == CONTENT[::-1]


def _killed(*args: object) -> None:
    raise KeyboardInterrupt


def test_a_part_that_is_too_long_is_started_over(server: Server) -> None:
    path = cached_path(address(server))
    path.parent.mkdir(parents=True)
    path.with_name("x.pkl.part").write_bytes(CONTENT + b"more")
    path.with_name("x.pkl.part.tag").write_text('"one"')
    assert fetch(address(server)).read_bytes() == CONTENT
    assert server.ranges == ["bytes=10244-", None]


def test_without_a_version_nothing_is_resumed(server: Server) -> None:
    server.stop_after, server.tag = 1000, None
    for _ in range(2):
        with pytest.raises(DownloadError, match=r"ended after 1,000"):
            fetch(address(server))
    assert server.ranges == [None, None]


def test_a_wrong_hash_or_size_says_both_and_deletes_nothing(server: Server) -> None:
    wrong = "0" * 64
    with pytest.raises(DownloadError, match=f"sha256 {SHA256}, not {wrong} .expected.") as caught:
        fetch(address(server), sha256=wrong)
    path = cached_path(address(server))
    assert not path.exists() and "kept for you" in str(caught.value)
    assert path.with_name("x.pkl.rejected").read_bytes() == CONTENT
    with pytest.raises(DownloadError, match=r"10,240 bytes, not 7"):
        fetch(address(server), size=7)
    assert fetch(address(server), sha256=SHA256.upper()) == path


def test_a_file_that_changes_after_its_first_use_is_noticed(server: Server) -> None:
    path = fetch(address(server))
    path.write_bytes(b"other")
    with pytest.raises(DownloadError, match=r"not .* \(recorded in x.pkl.sha256\)"):
        fetch(address(server))
    assert path.read_bytes() == b"other"


def test_a_file_put_there_by_hand_is_used(server: Server) -> None:
    server.status = 404
    with pytest.raises(DownloadError, match=r"404") as caught:
        fetch(address(server))
    path = cached_path(address(server))
    assert f"put it at {path}" in str(caught.value) and "give the path" in str(caught.value)
    path.write_bytes(b"by hand")
    assert fetch(address(server)) == path and len(server.ranges) == 1


def test_without_a_network_it_is_said_what_to_do(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", _no_network)
    with pytest.raises(DownloadError, match=r"another machine") as caught:
        load_teacher("edm-cifar10-uncond-vp")
    said = str(caught.value)
    url = published.PUBLISHED["edm-cifar10-uncond-vp"].url
    assert url in said and f"put it at {cached_path(url)}" in said
    assert "Temporary failure in name resolution" in said and "\n" not in said


def _no_network(*args: object, **kwargs: object) -> None:
    import socket

    raise socket.gaierror(-3, "Temporary failure in name resolution")


def test_the_licence_is_said_when_weights_are_downloaded(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", _no_network)
    with pytest.raises(DownloadError):
        load_teacher("edm-imagenet64-cond-adm")
    assert "CC BY-NC-SA 4.0" in capsys.readouterr().err


def test_an_endless_answer_does_not_fill_the_disk(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_MOST_BYTES", 5000)
    with pytest.raises(DownloadError, match=r"10,240 bytes"):
        fetch(address(server))


def replies(
    status: int, body: bytes, headers: Mapping[str, str], only_parts: bool = False
) -> Callable[[Handler, str | None], bool]:
    """Answer so, to every request or to those for a part."""

    def reply(handler: Handler, asked: str | None) -> bool:
        if only_parts and not asked:
            return False
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
        return True

    return reply


@pytest.mark.parametrize("length", [None, "many", "-1", "1e4"])
def test_a_file_of_unknown_length_needs_a_hash_or_a_size(
    server: Server, length: str | None
) -> None:
    headers = {} if length is None else {"Content-Length": length}
    server.reply = replies(200, CONTENT[:5000], headers)
    with pytest.raises(DownloadError, match=r"does not say how long it is"):
        fetch(address(server))
    with pytest.raises(DownloadError, match=r"is not the file that it should be"):
        fetch(address(server), sha256=SHA256)
    server.reply = replies(200, CONTENT, headers)
    assert fetch(address(server), sha256=SHA256).read_bytes() == CONTENT


LENGTH = str(len(CONTENT))


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (204, {}, "answered 204"),
        (203, {"Content-Length": LENGTH}, "answered 203"),
        (206, {"Content-Length": "10240", "Content-Range": "bytes 0-10239/99999"}, "answered 206"),
        (200, {"Content-Length": LENGTH, "Content-Encoding": "gzip"}, "another form .gzip."),
    ],
)
def test_other_answers_are_refused(
    status: int, headers: dict[str, str], words: str, server: Server
) -> None:
    server.reply = replies(status, b"" if status == 204 else CONTENT, headers)
    with pytest.raises(DownloadError, match=words) as caught:
        fetch(address(server), size=len(CONTENT))
    assert not cached_path(address(server)).exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content_range", "tag"),
    [
        ("bytes 1000-10239/10240", '"two"'),
        ("bytes 1000-10239/10240", ""),
        ("bytes 1000-1999/10240", '"one"'),
        ("bytes 999-10239/10240", '"one"'),
        ("bytes 1000-10239/*", '"one"'),
        ("bytes 1000-10239/10240 and more", '"one"'),
        ("", '"one"'),
    ],
)
def test_a_part_of_something_else_is_not_added(
    content_range: str, tag: str, server: Server
) -> None:
    server.stop_after = 1000
    with pytest.raises(DownloadError):
        fetch(address(server))
    server.stop_after = None
    body = b"x" * (1000 if "1999" in content_range else 9240)
    headers = {"Content-Length": str(len(body)), "Content-Range": content_range, "ETag": tag}
    server.reply = replies(206, body, headers, only_parts=True)
    assert fetch(address(server)).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", None]


def test_the_end_of_another_version_is_not_taken_for_the_file(server: Server) -> None:
    path = cached_path(address(server))
    path.parent.mkdir(parents=True)
    path.with_name("x.pkl.part").write_bytes(CONTENT[::-1])
    path.with_name("x.pkl.part.tag").write_text('"zero"')
    headers = {"Content-Range": f"bytes */{LENGTH}", "ETag": '"one"'}
    server.reply = replies(416, b"", headers, only_parts=True)
    assert fetch(address(server)).read_bytes() == CONTENT


def test_a_name_as_long_as_a_name_may_be(server: Server) -> None:
    name = "x" * 196 + ".pkl"
    assert fetch(address(server, name)).read_bytes() == CONTENT


@pytest.mark.parametrize("target", ["http://example.com/x", "file:///etc/hostname", "ftp://h/x"])
def test_redirections_are_held_to_the_same_rule(server: Server, target: str) -> None:
    server.location = target
    with pytest.raises(DownloadError, match=r"redirect"):
        fetch(address(server))


def test_a_redirection_never_leaves_https() -> None:
    request = room.Request("https://example.com/x")
    handler = room._CheckedRedirects()
    to = "http://127.0.0.1/x"
    with pytest.raises(room.URLError, match=r"not https"):
        handler.redirect_request(request, None, 302, "Found", {}, to)
    secure = handler.redirect_request(request, None, 302, "Found", {}, "https://example.org/x")
    assert secure is not None and secure.full_url == "https://example.org/x"


def test_several_readers_download_once(server: Server) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(address(server)))) for _ in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cached_path(address(server))] * 3 and server.ranges == [None]


def test_the_published_names() -> None:
    assert set(published.PUBLISHED) <= set(available_teachers())
    assert len(published.PUBLISHED) == 9
    for known in published.PUBLISHED.values():
        assert cached_path(known.url).name.endswith(".pkl")
        assert known.sha256 is None or len(known.sha256) == 64
    with pytest.raises(ValueError, match=r"Did you mean 'edm-cifar10-uncond-vp'"):
        load_teacher("edm-cifar10-uncond-vq")


def test_a_misspelt_option_is_noticed_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "fetch", _killed)
    with pytest.raises(TypeError, match=r"Did you mean 'precision'"):
        load_teacher("edm-cifar10-uncond-vp", precison="bfloat16")


def test_the_command_without_a_network(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", _no_network)
    assert cli.main(["convert-edm", "https://example.com/x.pkl", "out.safetensors"]) == 2
    said = capsys.readouterr().err
    assert "could not be downloaded" in said and "TRACEBACK" not in said and said.count("\n") == 1
