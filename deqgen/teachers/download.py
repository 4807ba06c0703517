"""Files from the internet, once: downloaded to a cache, resumed, checked.

A file lies in ``~/.cache/deqgen`` (or ``$DEQGEN_CACHE``) under the host and path of its address;
one that was put there by hand is as good. Beside it, ``NAME.sha256`` records its hash: the one that
was expected, or, where none is known, that of the first use. It is held against the file at every
use, so a file that changes later is noticed; whether the first copy was the right one is not known
in that case, only that its length is what the server said.

While a download is under way, ``NAME.part`` holds what has arrived and ``NAME.part.tag`` what the
server calls this version of the file; a download goes on where it stopped only if the server still
has that version, and begins anew otherwise. Only an answer that says how long it is, or a file
whose size or hash is known, can be told from one that was cut short; others are refused.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import IO, Any, cast
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from deqgen.atomic import replacing, write_text

_TIMEOUT = 30.0  # seconds without an answer or a byte
_CHUNK = 2**20
_MOST_BYTES = 16 * 2**30  # more than any published file; an endless answer must not fill the disk
_BOOKS = (".sha256", ".part", ".part.tag", ".rejected")  # what is written beside a file
_LONGEST_NAME = 200  # bytes; file systems take 255, and there are longer names beside a file's


class DownloadError(ConnectionError):
    """A file did not arrive, or is not the one that was expected."""


def is_url(address: str | os.PathLike[str]) -> bool:
    """Whether this is an address to download from, not a path."""
    return isinstance(address, str) and "://" in address


def cache_folder() -> Path:
    """``$DEQGEN_CACHE``, or ``~/.cache/deqgen``."""
    return Path(os.environ.get("DEQGEN_CACHE") or Path.home() / ".cache" / "deqgen")


def cached_path(url: str) -> Path:
    """Where the file of this address lies in the cache, once it is there.

    Raises:
        ValueError: an address that is not allowed, see :func:`fetch`, or that names no file.
    """
    parts = urlsplit(_checked(url))
    names = [unquote(name) for name in parts.path.split("/") if name]
    if not names or parts.path.endswith("/") or parts.query:
        raise ValueError(f"an address to download from ends in the name of a file; got {url!r}.")
    for name in names:
        if name in (".", "..") or not name.isprintable() or set(name) & set('/\\:*?"<>|'):
            raise ValueError(f"the part {name!r} of the address {url!r} cannot be a file's name.")
        if name.lower().endswith(_BOOKS):
            raise ValueError(
                f"the part {name!r} of the address {url!r} is a name that the cache keeps for "
                f"itself ({', '.join(_BOOKS)})."
            )
        if len(name.encode()) > _LONGEST_NAME:
            raise ValueError(
                f"the part {name[:20]!r}... of an address has {len(name.encode()):,} bytes, and a "
                f"file's name in the cache has {_LONGEST_NAME} at most."
            )
    return cache_folder().joinpath(_folder_of(parts), *names)


def _folder_of(parts: SplitResult) -> str:
    """One folder a server: its name, and its port where that is not the usual one."""
    usual = {"https": 443, "http": 80}[parts.scheme]
    port = "" if parts.port in (None, usual) else f"+{parts.port}"  # no name has a plus
    return f"{parts.hostname}{port}".replace("::1", "localhost")


def fetch(
    url: str,
    *,
    size: int | None = None,
    sha256: str | None = None,
    notice: str = "",
) -> Path:
    """The file of an address, downloaded if it is not in the cache yet.

    A progress bar is shown on a terminal. Ctrl-C, a kill or a lost connection leaves what has
    arrived, and the next call goes on from there.

    Args:
        url: ``https://...``; ``http://`` only to this machine.
        size: expected number of bytes, if known.
        sha256: expected hash in hexadecimal digits, if known; otherwise that of the first use is
            recorded and expected from then on.
        notice: printed to stderr before a download, such as the licence of what is downloaded.

    Returns:
        Its path in the cache.

    Raises:
        ValueError: an address of another kind.
        DownloadError: (an OSError) no network, no such file, or another size or hash than expected;
            the message says what to do. What has arrived is kept.
    """
    path = cached_path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        if path.is_file():
            _check(path, path, size, sha256)
            return path
        if notice:
            print(notice, file=sys.stderr)
        part = path.with_name(f"{path.name}.part")
        _download(url, path, part, checkable=size is not None or sha256 is not None)
        _check(part, path, size, sha256)
        with replacing(path) as partial:
            part.replace(partial)
        _tag_of(part).unlink(missing_ok=True)
    return path


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time download into a folder; the others wait, and find the file."""
    try:
        import fcntl
    except ImportError:  # Windows: the hash still notices what two writers would do
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _download(url: str, path: Path, part: Path, *, checkable: bool) -> None:
    """Complete ``part``; ``path`` is where the file will be."""
    tag = _tag_of(part)
    have = part.stat().st_size if part.is_file() and tag.is_file() else 0
    version = tag.read_text(encoding="utf-8") if have else ""
    headers = {"User-Agent": "deqgen", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        with _open(url, headers) as answer:
            start, total = _promised(answer, have, version)
            if total is None and not checkable:
                raise DownloadError(
                    f"{_failed(url, path)}: the server does not say how long it is, and a copy "
                    "that was cut short could not be told."
                )
            if not start:
                part.unlink(missing_ok=True)  # first: a kill must not leave it with a new tag
                _write_tag(tag, answer.headers)
            _receive(answer, part, start, total)
    except _OtherPart:
        part.unlink()
        _download(url, path, part, checkable=checkable)  # has nothing now, and asks for all
    except HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing after what there is: all of it, or too much
            same = _version(cast(Mapping[str, str], error.headers)) in ("", version)
            if not same or error.headers.get("Content-Range") != f"bytes */{have}":
                part.unlink()
                _download(url, path, part, checkable=checkable)
            return
        raise DownloadError(f"{_failed(url, path)}: the server answered {error}.") from None
    except DownloadError:
        raise
    except (URLError, TimeoutError, ConnectionError, SSLError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        said = str(reason) or type(reason).__name__
        raise DownloadError(f"{_failed(url, path)}: {said}.") from None


def _tag_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _failed(url: str, path: Path) -> str:
    return (
        f"{url} could not be downloaded. Try again; or download it on another machine and put it "
        f"at {path}, or give the path where you have it in place of the name or address. The "
        "reason"
    )


class _OtherPart(Exception):
    """The server sends another part than the rest of the version that was begun."""


def _promised(answer: Any, have: int, version: str) -> tuple[int, int | None]:
    """Where an answer begins, and the length of the whole file if it says so.

    Raises:
        _OtherPart: a part of the file, but not all that is missing of the same version.
        HTTPException: an answer that is no file, or not the file as it is.
    """
    headers = answer.headers
    if (coding := headers.get("Content-Encoding", "identity")) != "identity":
        raise HTTPException(f"the server sends it in another form ({coding}) than was asked for")
    if answer.status == 200:
        return 0, _count(headers.get("Content-Length"))
    if answer.status != 206 or not have:
        raise HTTPException(f"the server answered {answer.status}, which is no whole file")
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", ""), re.ASCII)
    start, last, total = (_count(number) for number in found.groups()) if found else (None,) * 3
    if start != have or last is None or total != last + 1 or _version(headers) != version:
        raise _OtherPart
    return have, total


def _count(digits: str | None) -> int | None:
    """A number of bytes in a header; ``None`` for none and for nonsense."""
    return int(digits) if digits and re.fullmatch(r"[0-9]{1,18}", digits) else None


def _version(headers: Mapping[str, str]) -> str:
    """What the server calls this version of the file; empty if nothing that promises the bytes."""
    version = headers.get("ETag", "")
    if not version or version.startswith("W/"):  # a weak one does not promise the same bytes
        version = headers.get("Last-Modified", "")
    return " ".join(version.split())


def _write_tag(tag: Path, headers: Mapping[str, str]) -> None:
    """Record the version that is being downloaded; without one, nothing can be resumed."""
    if version := _version(headers):
        write_text(tag, version)
    else:
        tag.unlink(missing_ok=True)


def _receive(answer: Any, part: Path, start: int, total: int | None) -> None:
    """Write the body to ``part`` from position ``start`` on."""
    if total is not None and total > _MOST_BYTES:
        raise DownloadError(f"{part.stem} has {total:,} bytes; more than 16 GiB are refused.")
    bar = tqdm(
        total=total,
        initial=start,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        desc=part.stem,
        disable=None,  # on a terminal only
    )
    with bar, part.open("r+b" if start else "wb") as file:
        file.seek(start)
        arrived = start
        while chunk := answer.read(_CHUNK):
            arrived += len(chunk)
            if arrived > _MOST_BYTES:
                raise DownloadError(f"{part.stem} has no end; 16 GiB of it are in {part}.")
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and arrived != total:
        raise ConnectionError(f"the connection ended after {arrived:,} of {total:,} bytes")


def _check(file: Path, path: Path, size: int | None, sha256: str | None) -> None:
    """Hold a file against what is expected of it, else against its record at ``path``."""
    found = file.stat().st_size
    if size is not None and found != size:
        raise DownloadError(_differs(file, path, f"{found:,} bytes", f"{size:,}"))
    record = path.with_name(f"{path.name}.sha256")
    recorded = record.read_text(encoding="utf-8").split() if record.is_file() else []
    expected = sha256 or (recorded[0] if recorded else None)
    with file.open("rb") as opened:
        digest = _sha256(opened)
    if expected is not None and digest != expected.lower():
        whose = "expected" if sha256 else f"recorded in {record.name}"
        raise DownloadError(_differs(file, path, f"the sha256 {digest}", f"{expected} ({whose})"))
    if recorded[:1] != [digest]:
        write_text(record, f"{digest}  {path.name}\n")  # as sha256sum writes and checks it


def _differs(file: Path, path: Path, found: str, expected: str) -> str:
    """Say what differs, and where the file is now; nothing is deleted."""
    if file != path:
        aside = path.with_name(f"{path.name}.rejected")
        file.replace(aside)
        file = aside
    return (
        f"{file} is not the file that it should be: it has {found}, not {expected}. It is kept for "
        "you to look at; remove it to download again, and the .sha256 beside it to trust another."
    )


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _checked(url: str) -> str:
    """Refuse addresses whose answers others could read or change on their way."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is no address to download from: {error}.") from None
    if "@" in parts.netloc:
        raise ValueError(
            "an address to download from has no user and no password in it; download such a file "
            "by other means and give its path."
        )
    local = parts.scheme == "http" and host in ("localhost", "127.0.0.1", "::1")
    # A name, of which the cache makes a folder: not "..", no colons, letters as in DNS.
    if local or (parts.scheme == "https" and re.fullmatch(r"(?!.*\.\.)[a-z0-9][a-z0-9._-]*", host)):
        return url
    raise ValueError(
        f"an address to download from begins with https:// and the name of a server; got {url!r}. "
        "A file that is here is given by its path."
    )


class _CheckedRedirects(HTTPRedirectHandler):
    """From https to https only."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme != "https" and req.type == "https":
            raise URLError(f"it redirects to {newurl!r}, which is not https")
        try:
            return super().redirect_request(req, fp, code, msg, headers, _checked(newurl))
        except ValueError as error:
            raise URLError(f"it redirects to {newurl!r}") from error


def _open(url: str, headers: Mapping[str, str]) -> AbstractContextManager[Any]:
    answer: AbstractContextManager[Any] = build_opener(_CheckedRedirects).open(
        Request(url, headers=dict(headers)), timeout=_TIMEOUT
    )
    return answer
