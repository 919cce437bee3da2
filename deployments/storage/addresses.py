"""The addresses of files: which URLs are ours, and which file each of them means.

    <public URL>/files/<key>          ──▶ the key       also in capitals, with its port, or with other letters escaped
    https://v3.fal.media/files/<key>  ──▶ the key       where only we can have given the key
    <public URL>/<anything else>      ──▶ ours, no file

httpx reads the URL, as it does for a download, so that no spelling is ours to one and a stranger's to the other.
"""

from __future__ import annotations

import posixpath
import re
from urllib.parse import quote

import httpx

from deployments.storage.keys import FILES, is_key

_CDN = ("fal.media", "v3.fal.media", "v3b.fal.media")
"""fal's hosts for files, which ``svd-serve connect`` leads here. fal's own files there have other paths."""

_GIVEN = re.compile(rf"/files/({FILES}/[0-9a-f]{{32}}/.+)", re.DOTALL)
_USUAL = {"http": 80, "https": 443}


class Addresses:
    """From a file's key to its URL, and back."""

    def __init__(self, public_url: str) -> None:
        """Know under which address clients reach us.

        Raises:
            ValueError: It is no http(s) URL.
        """
        self._base = public_url.rstrip("/")
        public = _parse(self._base)
        if public is None or public.scheme not in _USUAL:
            raise ValueError("SVD_PUBLIC_URL must be an http or https URL, without a user name")
        self._public = public

    def url_of(self, key: str) -> str:
        """The URL of a file."""
        return f"{self._base}/files/{quote(key)}"

    def key_of(self, url: str) -> str | None:
        """The key behind a URL of ours; None for anybody else's, and where no file can have it."""
        parsed = _parse(url)
        if parsed is None:
            return None
        if _origin(parsed) == _origin(self._public):
            key = parsed.path.removeprefix(self._files)
            return key if key != parsed.path and is_key(key) else None
        given = _GIVEN.fullmatch(parsed.path) if _is_cdn(parsed) else None
        return given[1] if given and is_key(given[1]) else None

    def owns(self, url: str) -> bool:
        """Whether a URL leads to this server: to its host and port, below its path."""
        parsed = _parse(url)
        if parsed is None or not _is_same_place(parsed, self._public):
            return self.key_of(url) is not None
        path = posixpath.normpath("/" + parsed.path.lstrip("/"))
        return f"{path}/".startswith(self._files.removesuffix("files/"))

    @property
    def _files(self) -> str:
        return f"{self._public.path.rstrip('/')}/files/"


def _parse(url: str) -> httpx.URL | None:
    """A URL as it would be called; None where nobody could, or would send a user name along."""
    try:
        parsed = httpx.URL(url)
        return None if parsed.userinfo or not parsed.host else parsed
    except (httpx.InvalidURL, ValueError):
        return None


def _origin(url: httpx.URL) -> tuple[str, bytes, int | None]:
    return url.scheme, _host(url), _port(url)


def _is_same_place(url: httpx.URL, other: httpx.URL) -> bool:
    """Whether both lead to the same host and port; of the usual two, one redirects to the other."""
    ports = {_port(url), _port(other)}
    return _host(url) == _host(other) and (len(ports) == 1 or ports == set(_USUAL.values()))


def _host(url: httpx.URL) -> bytes:
    return url.raw_host.removesuffix(b".")


def _port(url: httpx.URL) -> int | None:
    return url.port or _USUAL.get(url.scheme)


def _is_cdn(url: httpx.URL) -> bool:
    return url.scheme in _USUAL and _host(url).decode("ascii") in _CDN and _port(url) == _USUAL[url.scheme]
