"""What the tests of the page in a browser share: the browser, a site that notices objections, a person's gestures."""

import csv
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.people import KEY, Gate, guarded_app, served
from tests.serving import picture

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

HOSTILE = "<img src=x onerror=alert(1)>=1+1.png"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    binary = next((path for path in map(shutil.which, names) if path), None)
    if binary is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on the PATH")
    playwright.expect.set_options(timeout=20_000)  # patience costs nothing where nothing is wrong
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield running
        running.close()


class Site:
    """A served endpoint with its gate, and pages on it that notice what a page must not do."""

    def __init__(self, browser: Any, gate: Gate, url: str) -> None:
        self.gate, self.url = gate, url
        self._browser = browser
        self.outside: list[str] = []
        self.complaints: list[str] = []
        self.contexts: list[Any] = []

    def open(self, path: str = "/", *, key: str = KEY, **options: Any) -> Any:
        """A page of a fresh browser profile; with the key given unless it is empty."""
        context = self._browser.new_context(**options)
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda request: self._note_request(request.url))
        page.on("console", lambda message: self._note_console(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("filechooser", lambda _: None)  # from now on none opens on the screen
        page.goto(self.url + path)
        if key:
            page.get_by_label("Key for this endpoint").fill(key)
            page.get_by_role("button", name="Use this key").click()
            playwright.expect(page.locator("#model")).to_be_visible()
        return page

    def _note_request(self, url: str) -> None:
        if not url.startswith((self.url, "blob:", "data:")):
            self.outside.append(url)

    def _note_console(self, text: str) -> None:
        # What the browser says of every answer that is an error, or did not come, is no complaint about the page.
        if not text.startswith("Failed to load resource"):
            self.complaints.append(text)


@pytest.fixture
def site(browser: Any, tiny_bundle: str, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes a site for given settings. At the end: no request went elsewhere, and the browser had nothing to object."""
    stack: list[Any] = []
    sites: list[Site] = []

    def make(**settings: Any) -> Site:
        with ThreadPoolExecutor(1) as aside:  # this thread's event loop is the browser driver's
            gate = Gate(aside.submit(guarded_app, tiny_bundle, **settings).result())
        running = served(gate)
        stack.append(running)
        sites.append(Site(browser, gate, running.__enter__()))
        return sites[-1]

    yield make
    for one in sites:
        for context in one.contexts:
            context.close()
    for running in stack:
        running.__exit__(None, None, None)
    assert [one.outside for one in sites] == [[] for _ in sites]
    assert [one.complaints for one in sites] == [[] for _ in sites]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two dives, a file name that is markup and a formula, a broken image, a text, and a hidden file."""
    root = tmp_path / "frames"
    for name, blob in {
        "dive 1/1.png": picture(1),
        "dive 1/2.png": picture(2),
        f"dive 2/{HOSTILE}": picture(3),
        "dive 2/broken.png": picture(4)[:200],
        "dive 2/notes.txt": b"no image",
        "dive 2/.hidden.png": picture(5),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(blob)
    return root


def drop(page: Any, *paths: Path) -> None:
    """Let go of files or folders over the page, as a person does: through the browser's own input."""
    box = page.locator("#drop").bounding_box()
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        at = {"x": box["x"] + 20, "y": box["y"] + 20}
        session.send("Input.dispatchDragEvent", {"type": kind, **at, "data": data})


def looked_at(page: Any, done: int, of: int) -> None:
    playwright.expect(page.locator("#count")).to_contain_text(f"{done} of {of} image")


def rows_of(page: Any) -> Any:
    return page.locator("#rows > li")


def saved_table(page: Any) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    blob = Path(download.value.path()).read_bytes()
    assert blob.startswith(b"\xef\xbb\xbf")  # Excel takes it for UTF-8
    assert b"\n" not in blob.replace(b"\r\n", b"")
    return list(csv.DictReader(blob.decode("utf-8-sig").splitlines()))
