"""Files from the internet, once: downloaded to a cache, resumed, checked.

A file lies in ``~/.cache/deqgen`` (or ``$DEQGEN_CACHE``) under the host and path of its address;
one that was put there by hand is as good. Beside it, ``NAME.sha256`` records its hash: the one that
was expected, or, where none is known, that of the first use. It is held against the file at every
use, so a file that changes later is noticed; whether the first copy was the right one is not known
in that case, only that its length is what the server said.

While a download is under way, ``NAME.part`` holds what has arrived and ``NAME.part.tag`` what the
server calls this version of the file; a download goes on where it stopped only if the server still
has that version.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from deqgen.atomic import replacing, write_text

_TIMEOUT = 30.0  # seconds without an answer or a byte
_CHUNK = 2**20
_MOST_BYTES = 16 * 2**30  # more than any published file; an endless answer must not fill the disk


class DownloadError(OSError):
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
    return cache_folder().joinpath(str(parts.hostname), *names)


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
        _download(url, path, part)
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


def _download(url: str, path: Path, part: Path) -> None:
    """Complete ``part``; ``path`` is where the file will be."""
    tag = _tag_of(part)
    have = part.stat().st_size if part.is_file() and tag.is_file() else 0
    headers = {"User-Agent": "deqgen", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text(encoding="utf-8")}
    try:
        with _open(url, headers) as answer:
            start = _start(answer.headers, have) if have else 0
            if not start:
                part.unlink(missing_ok=True)  # first: a kill must not leave it with a new tag
                _write_tag(tag, answer.headers)
            _receive(answer, part, start)
    except HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing after what there is: all of it, or too much
            if error.headers.get("Content-Range") != f"bytes */{have}":
                part.unlink()
                _download(url, path, part)
            return
        raise DownloadError(f"{_failed(url, path)}: the server answered {error}.") from None
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


def _start(headers: Mapping[str, str], have: int) -> int:
    """Where the answer begins: after what there is, or at zero if the server sends all of it."""
    return have if headers.get("Content-Range", "").startswith(f"bytes {have}-") else 0


def _write_tag(tag: Path, headers: Mapping[str, str]) -> None:
    """Record the version that is being downloaded; without one, nothing can be resumed."""
    version = headers.get("ETag", "")
    if not version or version.startswith("W/"):  # a weak one does not promise the same bytes
        version = headers.get("Last-Modified", "")
    if version:
        write_text(tag, " ".join(version.split()))
    else:
        tag.unlink(missing_ok=True)


def _receive(answer: Any, part: Path, start: int) -> None:
    """Write the body to ``part`` from position ``start`` on."""
    said = answer.headers.get("Content-Length")
    total = start + int(said) if said and said.isdigit() else None
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
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return url
    if parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1"):
        return url
    raise ValueError(
        f"an address to download from begins with https://; got {url!r}. A file that is here is "
        "given by its path."
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
