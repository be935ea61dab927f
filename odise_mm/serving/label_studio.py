"""Labeling configs and images of Label Studio's tasks."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from odise_mm.errors import ConfigError, ImageError
from odise_mm.serving.uploads import (
    MAX_NAME,
    MAX_TEXT,
    Limits,
    check_bytes,
    decode_base64,
)
from odise_mm.utils.display import printable
from odise_mm.utils.files import path_inside, regular_file
from odise_mm.vocabulary import Vocabulary
from odise_mm.vocabulary.files import key_of
from odise_mm.vocabulary.separators import split_synonyms

_URL_SIGNS = "%:/?#[]@!$&'()*+,;=~"  # all others are quoted
_LOCAL_FILES = "/data/local-files/"
_FETCH_SECONDS = 20.0
_TOKEN_SECONDS = 240.0  # access tokens are valid for five minutes


@dataclass(frozen=True)
class LabelConfig:
    """What is needed of a project's labeling config."""

    from_name: str
    """Name of the ``BrushLabels``."""
    to_name: str
    """Name of the ``Image``."""
    image_key: str
    """Key of the image's address in the data of a task."""
    labels: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    """Names that the model looks for, by label."""

    @classmethod
    def parse(cls, text: Any) -> LabelConfig:
        """Parse the XML of a labeling config.

        The names of a label are its ``predicted_values``, separated by commas, or its ``value``.

        Raises:
            ConfigError: If it is not XML, or has no ``Image`` with ``BrushLabels``.
        """
        root = _parse_xml(text)
        brush = root.find(".//BrushLabels")
        if brush is None:
            raise ConfigError("label_config: has no BrushLabels; predictions are brush masks")
        from_name, to_name = brush.get("name", ""), brush.get("toName", "")
        image = next((tag for tag in root.iter("Image") if tag.get("name") == to_name), None)
        if not from_name or image is None:
            raise ConfigError(f"label_config: no Image has the toName={to_name!r} of BrushLabels")
        value = image.get("value", "")
        if not value.startswith("$"):
            raise ConfigError(f"label_config: value={value!r} of the Image must be like $image")
        found = {tag.get("value", ""): tag.get("predicted_values", "") for tag in brush}
        found.pop("", None)
        if not found:
            raise ConfigError("label_config: BrushLabels has no labels")
        synonyms = tuple(split_synonyms(names) or (label,) for label, names in found.items())
        if sum(len(name) for group in synonyms for name in group) > MAX_TEXT or any(
            len(name) > MAX_NAME for group in synonyms for name in group
        ):
            raise ConfigError(
                f"label_config: the labels have more than {MAX_TEXT:,} characters, or one has more "
                f"than {MAX_NAME}"
            )
        return cls(from_name, to_name, value[1:], tuple(found), synonyms)

    def vocabulary(self, known: Vocabulary | None) -> Vocabulary:
        """Return the classes of the labels.

        Label Studio does not know things and stuff. A label is stuff if one of its names is a name
        of stuff in ``known``; otherwise it is a thing.
        """
        flags: dict[str, bool] = {}
        if known is not None:
            for group, thing in zip(known.synonyms, known.is_thing, strict=True):
                flags |= {key_of(name): thing for name in group}
        things = [all(flags.get(key_of(name), True) for name in group) for group in self.synonyms]
        return Vocabulary(self.synonyms, tuple(things), "labels", self.labels)


def _parse_xml(text: Any) -> ElementTree.Element:
    if not isinstance(text, str) or not text.strip():
        raise ConfigError("label_config: missing; set up labels in the project's settings")
    if "<!" in text.replace("<!--", ""):
        raise ConfigError("label_config: declarations (<!DOCTYPE, <!ENTITY) are not read")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as err:
        raise ConfigError(f"label_config: not XML ({printable(err)})") from err


class ImageStore:
    """Finds the images of tasks: in Label Studio, in its folder of local files, or in the task.

    Images are fetched from no other server than Label Studio's, so that a task cannot make this
    server call others.

    Args:
        url: Address of Label Studio, such as ``http://localhost:8080``. None: nothing is fetched.
        key: Access token of a user of Label Studio, a personal or a legacy one.
        root: Document root of local files. None: they are fetched from Label Studio, too.
        limits: Limits of images.

    Raises:
        ConfigError: If ``url`` is not an address.
    """

    def __init__(
        self,
        url: str | None,
        key: str | None,
        root: str | os.PathLike | None,
        limits: Limits,
    ) -> None:
        self.origin = None
        if url is not None:
            self.origin = _origin(url)
            if self.origin is None:
                raise ConfigError(
                    f"{printable(url)!r} is not an address of Label Studio; write it like "
                    "http://localhost:8080"
                )
        self.base = (url or "").rstrip("/")
        self.key = key
        self.root = root
        self.limits = limits
        self._token: tuple[float, str] | None = None
        self._lock = threading.Lock()
        self._opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))

    def read(self, address: Any) -> bytes:
        """Return the file of an image.

        Args:
            address: Address in a task: ``data:image/...;base64,...``, a path on Label Studio's
                server, or a URL of it.

        Raises:
            ImageError: If the address is somewhere else, or the file is missing or too large.
        """
        if not isinstance(address, str) or not address:
            raise ImageError(f"{printable(repr(address), limit=60)} is not the address of an image")
        if address.startswith("data:"):
            return decode_base64(address, self.limits)
        shown = printable(address, limit=200)
        parsed = urllib.parse.urlsplit(address)
        if self.root is not None and parsed.path == _LOCAL_FILES:
            names = urllib.parse.parse_qs(parsed.query).get("d", [""])
            return self._read_local(names[-1], shown)
        if self.origin is None:
            raise ImageError(f"{shown}: images are not fetched; start with --label-studio URL")
        url = self.base + address if address.startswith("/") else address
        if _origin(url) != self.origin:
            raise ImageError(f"{shown}: images are fetched only from {self.base}")
        return self._fetch(urllib.parse.quote(url, safe=_URL_SIGNS), shown)

    def _read_local(self, name: str, shown: str) -> bytes:
        assert self.root is not None, "the caller checks it"
        try:
            path = path_inside(self.root, name.lstrip("/"), ImageError, "task")
            size = regular_file(path, ImageError, "file").stat().st_size
            content = path.read_bytes() if size <= self.limits.max_bytes else b""
        except (ImageError, OSError) as err:  # with the path of the root
            raise ImageError(f"{shown}: no such file below the root of local files") from err
        check_bytes(size, self.limits, shown)
        return content

    def _fetch(self, url: str, shown: str) -> bytes:
        request = urllib.request.Request(url, headers=self._headers())
        content = self._open(request, self.limits.max_bytes + 1, shown)
        check_bytes(len(content), self.limits, shown)
        return content

    def _open(self, request: urllib.request.Request, most: int, shown: str) -> bytes:
        try:
            with self._opener.open(request, timeout=_FETCH_SECONDS) as response:
                return response.read(most)
        except urllib.error.HTTPError as err:
            hint = "; check the token of Label Studio" if err.code in (401, 403) else ""
            raise ImageError(f"{shown}: Label Studio answers {err.code}{hint}") from err
        except (OSError, ValueError, http.client.HTTPException) as err:
            reason = printable(getattr(err, "reason", err), limit=200)
            raise ImageError(f"{shown}: cannot be fetched from Label Studio ({reason})") from err

    def _headers(self) -> dict[str, str]:
        """Return the header that Label Studio asks for."""
        if not self.key:
            return {}
        if self.key.count(".") != 2:  # a legacy token
            return {"Authorization": f"Token {self.key}"}
        with self._lock:
            if self._token is None or time.monotonic() > self._token[0] + _TOKEN_SECONDS:
                request = urllib.request.Request(
                    f"{self.base}/api/token/refresh/",
                    json.dumps(dict(refresh=self.key)).encode(),
                    {"Content-Type": "application/json"},
                )
                answer = self._open(request, 1 << 16, "access token")
                try:
                    self._token = (time.monotonic(), str(json.loads(answer)["access"]))
                except (ValueError, LookupError, TypeError) as err:
                    raise ImageError("Label Studio gave no access token; check yours") from err
            return {"Authorization": f"Bearer {self._token[1]}"}


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Treats redirects as errors: they may lead to other servers."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _origin(url: str) -> tuple[str, str, int] | None:
    """Return scheme, host and port of a URL; None if it is not http(s)."""
    try:
        parsed = urllib.parse.urlsplit(url)
        port = parsed.port
    except ValueError:
        return None
    if parsed.scheme not in ("http", "https") or not parsed.hostname or parsed.username:
        return None
    return parsed.scheme, parsed.hostname, port or (443 if parsed.scheme == "https" else 80)


def image_of(task: Any, config: LabelConfig, images: ImageStore) -> bytes:
    """Return the image file of a task.

    Raises:
        ImageError: If the task has none, or it cannot be read.
    """
    data = task.get("data") if isinstance(task, Mapping) else None
    if not isinstance(data, Mapping) or config.image_key not in data:
        raise ImageError(f"the task's data has no {printable(config.image_key)!r}")
    return images.read(data[config.image_key])
