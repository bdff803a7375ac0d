"""From the bytes of a request to a list of images, with every limit enforced while the bytes arrive."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from data.images import Failure
from serve.door.wholebody import next_piece
from serve.errors import ApiError
from serve.settings import EndpointConfig

# Parts without a file name are form fields. To /predict they mean nothing, but browsers and clients may send a few.
_MAX_FIELDS = 32


@dataclass(frozen=True)
class Upload:
    """One image as it was sent. `file` is its name in a multipart body, None for a raw body."""

    blob: bytes
    file: str | None = None

    @property
    def image(self) -> bytes | Failure:
        """For the predictor. No image begins with a bracket: whoever sends JSON is told where it goes."""
        if not self.blob.startswith((b"{", b"[")):
            return self.blob
        message = (
            "this is JSON; here goes an encoded image, arrays and base64 go to /invocations or /v1/models/NAME:predict"
        )
        return Failure("not_an_image", message)


@dataclass(frozen=True)
class Form:
    """A multipart body: its files in order, and its fields by name (of equal names the last)."""

    uploads: list[Upload]
    fields: dict[str, str]


async def read_uploads(request: Request, limits: EndpointConfig) -> list[Upload]:
    """Read the whole body as images, in order. ApiError 400, 408, 413 or 422 says what is wrong with it."""
    return (await read_form(request, limits)).uploads


async def read_form(request: Request, limits: EndpointConfig) -> Form:
    """`read_uploads`, with the form's other fields; a raw body has none."""
    headers = _admitted_headers(request, limits)
    kind, options = parse_options_header(headers.get(b"content-type"))
    if kind == b"multipart/form-data":
        async with _InTime(limits):
            return await _read_multipart(request, options.get(b"boundary"), limits)
    if kind.startswith(b"multipart/"):
        raise ApiError(422, "not_form_data", "send images as multipart/form-data, or one as the raw body")
    empty = "the body is empty: send an image as the body, or one or more files as multipart/form-data"
    return Form([Upload(await _read_whole(request, limits, empty))], {})


async def read_body(request: Request, limits: EndpointConfig, empty: str) -> bytes:
    """Read the whole body, whatever it is. ApiError 400 (with the text `empty`), 408, 413, or 415 if it is compressed.

    A compressed body is refused because a few of its bytes can become as many as they like.
    """
    _admitted_headers(request, limits)
    return await _read_whole(request, limits, empty)


class _InTime:
    """`asyncio.timeout` whose end is an answer. A class: a generator's context manager costs ten microseconds more."""

    __slots__ = ("_seconds", "_timeout")

    def __init__(self, limits: EndpointConfig) -> None:
        self._seconds = limits.body_timeout_s

    async def __aenter__(self) -> None:
        self._timeout = asyncio.timeout(self._seconds)
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            message = f"the body did not arrive within {self._seconds:g} s: send it faster or send fewer images"
            raise ApiError(408, "body_timeout", message) from None


def _admitted_headers(request: Request, limits: EndpointConfig) -> dict[bytes, bytes]:
    """The headers, of equal ones the first; ApiError 413 or 415 for a body that they say will not be taken."""
    headers = dict(reversed(request.scope["headers"]))
    encoding = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
    if encoding not in ("identity", ""):
        raise ApiError(
            415, "compressed_body", f"Content-Encoding {encoding[:32]!r} is not taken: send the body as it is"
        )
    announced = headers.get(b"content-length", b"")
    if announced.isdigit() and int(announced[:20]) > limits.max_body_bytes:
        raise _too_large(limits)
    return headers


def _too_large(limits: EndpointConfig) -> ApiError:
    message = (
        f"the body is larger than {limits.max_body_mb:g} MiB: send fewer or smaller images in a request "
        "(serve/classify.py labels whole folders)"
    )
    return ApiError(413, "body_too_large", message)


async def _limited(request: Request, limits: EndpointConfig) -> AsyncIterator[bytes]:
    """The body's chunks, up to the limit. A chunked body announces no size, so what counts is what arrives."""
    total, more = 0, True
    while more:
        chunk, more = await next_piece(request.receive)
        total += len(chunk)
        if total > limits.max_body_bytes:
            raise _too_large(limits)
        yield chunk


async def _read_whole(request: Request, limits: EndpointConfig, empty: str) -> bytes:
    body = bytearray()  # and no list of chunks: a hostile client may send them of two bytes each
    async with _InTime(limits):
        async for chunk in _limited(request, limits):
            body += chunk
    if not body:
        raise ApiError(400, "empty_body", empty)
    return bytes(body)


async def _read_multipart(request: Request, boundary: bytes | None, limits: EndpointConfig) -> Form:
    if not boundary:
        raise ApiError(400, "bad_multipart", "the Content-Type has no boundary: let your client set that header itself")
    parts = _Parts(limits)
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
        size = 0
        async for chunk in _limited(request, limits):
            size += len(chunk)
            parser.write(chunk)
    except FormParserError as error:
        message = f"the multipart body is malformed ({error}): let your client library build it"
        raise ApiError(400, "bad_multipart", message) from None
    if not size:
        raise ApiError(400, "empty_body", "the body is empty: send one or more files as multipart/form-data")
    if not parts.complete:
        # python-multipart does not notice a body that stops early; its last image would be cut in silence.
        raise ApiError(400, "bad_multipart", "the multipart body ends before its closing boundary: send it again")
    if not parts.uploads:
        message = "the form has no file: give each image part a file name (curl -F image=@photo.jpg does)"
        raise ApiError(422, "no_files", message)
    return Form(parts.uploads, parts.fields)


class _Parts:
    """Collects the parts of a multipart body in memory: the body limit bounds them all together."""

    def __init__(self, limits: EndpointConfig) -> None:
        self.uploads: list[Upload] = []
        self.fields: dict[str, str] = {}
        self.complete = False
        self._max_files = limits.max_files
        self._others = 0
        self._file: str | None = None
        self._field: str | None = None
        self._data: list[bytes] = []
        self._header = b""
        self._value = b""
        self._disposition = b""

    def callbacks(self) -> dict[str, Callable[..., None]]:
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end")
        found: dict[str, Callable[..., None]] = {f"on_{name}": getattr(self, f"_{name}") for name in names}
        return {**found, "on_headers_finished": self._headers_finished, "on_end": self._end}

    def _part_begin(self) -> None:
        self._file, self._field, self._data, self._disposition = None, None, [], b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        name = options.get(b"filename")
        if name is None:
            self._others += 1
            if self._others > _MAX_FIELDS:
                message = f"the form has more than {_MAX_FIELDS} fields that are not files: send the images only"
                raise ApiError(422, "too_many_fields", message)
            self._field = options.get(b"name", b"").decode("utf-8", errors="replace")
            return
        if len(self.uploads) >= self._max_files:
            message = f"more than {self._max_files} files: send them in several requests"
            raise ApiError(413, "too_many_files", message)
        self._file = name.decode("utf-8", errors="replace")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None or self._field is not None:
            self._data.append(data[start:end])

    def _part_end(self) -> None:
        if self._file is not None:
            self.uploads.append(Upload(b"".join(self._data), self._file))
        elif self._field is not None:
            self.fields[self._field] = b"".join(self._data).decode("utf-8", errors="replace")
        self._data = []

    def _end(self) -> None:
        self.complete = True
