"""The page in a real browser: images in, answers, corrections, table, errors, with the keyboard, on a phone."""

import csv
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.people import KEY, Gate, guarded_app, served
from tests.serving import CLASSES, picture

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

HOSTILE = "<img src=x onerror=alert(1)>=1+1.png"
# A file input is not seen; its label is.
_OUTLINE = "e => getComputedStyle(e.matches('.file input') ? e.nextElementSibling : e).outlineStyle"


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


def test_a_folder_is_dropped_and_every_image_answered(site: Callable[..., Site], folder: Path) -> None:
    made = site()
    page = made.open()
    drop(page, folder)
    looked_at(page, 4, 4)
    playwright.expect(page.locator("#count")).to_contain_text("1 without an answer")
    playwright.expect(page.locator("#count")).to_contain_text("1 other file in the folders left out")
    rows = rows_of(page)
    names = [text.removeprefix("frames/") for text in page.locator(".file-name").all_text_contents()]
    assert names == ["dive 1/1.png", "dive 1/2.png", f"dive 2/{HOSTILE}", "dive 2/broken.png"]
    assert page.locator("#rows img[src='x']").count() == 0
    for number in range(3):
        words = rows.nth(number).locator(".words").inner_text()
        assert re.search(r"\(\d+\s%\)(, but the model is not sure)?$", words)
        assert rows.nth(number).locator(".label").inner_text() in CLASSES
    assert rows.nth(3).locator(".failed").inner_text().startswith("No answer: ")
    rows.nth(0).get_by_text("All classes").click()
    playwright.expect(rows.nth(0).locator("dt")).to_have_count(len(CLASSES))
    assert sorted(rows.nth(0).locator("dt").all_text_contents()) == sorted(CLASSES)
    playwright.expect(rows.nth(0).locator("img")).to_have_js_property("naturalWidth", 40)
    assert page.get_by_role("button", name="Wrong?").count() == 0  # corrections are off

    table = saved_table(page)
    assert list(table[0]) == ["file", "label", "probability", "confident", "error"]
    assert [row["file"].removeprefix("frames/") for row in table] == names
    assert table[3]["error"].startswith("truncated: ")
    page.get_by_label("Show").select_option(label="without an answer (1)")
    playwright.expect(rows).to_have_count(1)

    assert page.locator("html").evaluate("() => localStorage.length + sessionStorage.length") == 0
    assert page.context.cookies() == []
    assert KEY not in page.url
    assert KEY not in page.content()


def test_a_formula_in_a_file_name_is_harmless_in_the_table(site: Callable[..., Site], tmp_path: Path) -> None:
    (tmp_path / "=1+1,'“.png").write_bytes(picture(1))
    page = site().open()
    page.get_by_label("Choose images").set_input_files(tmp_path / "=1+1,'“.png")
    looked_at(page, 1, 1)
    assert saved_table(page)[0]["file"] == "'=1+1,'“.png"


def test_wrong_keys_are_told_in_words(site: Callable[..., Site], folder: Path) -> None:
    made = site()
    page = made.open(key="")
    problem = page.locator("#key-error")
    playwright.expect(page.get_by_label("Key for this endpoint")).to_be_focused()
    playwright.expect(problem).to_be_hidden()
    page.get_by_label("Choose images").set_input_files(folder / "dive 1" / "1.png")
    playwright.expect(problem).to_contain_text("wait for the key")
    for key, says in (
        ("not-this", "does not know this key"),
        ("two words", "without spaces"),
        ("schlüssel", "letters"),
    ):
        page.get_by_label("Key for this endpoint").fill(key)
        page.keyboard.press("Enter")
        playwright.expect(problem).to_contain_text(says)
    page.get_by_label("Key for this endpoint").fill(f"  {KEY}  ")
    page.keyboard.press("Enter")
    looked_at(page, 1, 1)  # what waited goes on by itself
    assert page.get_by_label("Key for this endpoint").input_value() == ""

    made.gate.instead.append(("/predict", 403, "wrong_key", {}))  # taken away meanwhile
    page.get_by_label("Choose images").set_input_files(folder / "dive 1" / "2.png")
    playwright.expect(problem).to_contain_text("does not know this key")
    page.get_by_label("Key for this endpoint").fill(KEY)
    page.keyboard.press("Enter")
    looked_at(page, 2, 2)


def test_a_busy_endpoint_is_asked_again_under_the_same_request_id(site: Callable[..., Site], folder: Path) -> None:
    made = site()
    page = made.open()
    made.gate.instead += [
        ("/predict", 429, "rate_limited", {"Retry-After": "2"}),
        ("/predict", 503, "x", {"Retry-After": "1"}),
    ]
    page.get_by_label("Choose images").set_input_files(folder / "dive 1" / "1.png")
    playwright.expect(page.locator("#pause")).to_contain_text("Trying again in 2 s")
    looked_at(page, 1, 1)
    playwright.expect(page.locator("#pause")).to_be_hidden()
    assert len(made.gate.ids) == 3
    assert len(set(made.gate.ids)) == 1


def test_offline_stop_and_go_on(site: Callable[..., Site], folder: Path) -> None:
    page = site().open()
    page.context.set_offline(True)
    page.get_by_label("Choose images").set_input_files(folder / "dive 1" / "1.png")
    playwright.expect(page.locator("#pause")).to_contain_text("cannot be reached")
    page.get_by_role("button", name="Stop").click()
    playwright.expect(page.locator("#trouble")).to_contain_text("Stopped")
    looked_at(page, 0, 1)
    page.context.set_offline(False)
    page.get_by_role("button", name="Go on").click()
    looked_at(page, 1, 1)
    playwright.expect(page.locator("#trouble")).to_be_hidden()
    page.get_by_role("button", name="Clear").click()
    playwright.expect(page.locator("#results")).to_be_hidden()


def test_large_and_many_images_are_told_apart_from_good_ones(site: Callable[..., Site], tmp_path: Path) -> None:
    made = site(max_body_mb=0.1, max_files=3)
    (tmp_path / "large.png").write_bytes(bytes(110_000))
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    page = made.open()
    page.get_by_label("Choose images").set_input_files(sorted(tmp_path.glob("*.png")))
    looked_at(page, 10, 10)
    assert page.locator(".failed").all_text_contents() == [
        "No answer: 0.1 MiB, and this endpoint takes 0.1 MiB in a request: save it smaller"
    ]
    made.gate.instead.append(("/predict", 413, "body_too_large", {}))  # a batch that is refused goes one by one
    page.get_by_label("Choose images").set_input_files([tmp_path / "1.png", tmp_path / "2.png"])
    looked_at(page, 12, 12)
    assert page.locator(".failed").count() == 1


def test_a_correction_is_kept_with_its_image(site: Callable[..., Site], folder: Path, tmp_path: Path) -> None:
    page = site(corrections=str(tmp_path / "said")).open()
    page.get_by_label("Choose images").set_input_files([folder / "dive 1" / "1.png", folder / "dive 1" / "2.png"])
    looked_at(page, 2, 2)
    page.get_by_label("Place or dive").fill("reef 7")
    first, second = rows_of(page).nth(0), rows_of(page).nth(1)
    first.get_by_role("button", name="Wrong?").click()
    offered = first.get_by_label("It is").locator("option").all_text_contents()
    assert first.locator(".label").inner_text() not in offered
    first.get_by_label("It is").select_option(label="something else …")
    first.get_by_label("Its name").fill("=kea")
    first.get_by_role("button", name="Save").click()
    playwright.expect(first.get_by_role("alert")).to_contain_text("may not begin with =")
    first.get_by_label("Its name").fill("<b>kea</b>")
    first.get_by_role("button", name="Save").click()
    playwright.expect(first.locator(".said")).to_have_text("Saved: you said <b>kea</b>")
    second.get_by_role("button", name="Wrong?").click()
    second.get_by_label("It is").select_option(label="<b>kea</b>")  # offered from now on
    second.get_by_role("button", name="Save").click()
    playwright.expect(second.locator(".said")).to_contain_text("Saved")

    assert [row["correction"] for row in saved_table(page)] == ["<b>kea</b>"] * 2
    with (tmp_path / "said" / "corrections.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["group"], row["corrected_by"]) for row in rows] == [("<b>kea</b>", "reef 7", "ana")] * 2
    assert {row["original"] for row in rows} == {"1.png", "2.png"}
    kept = sorted((tmp_path / "said" / row["path"]).read_bytes() for row in rows)
    assert kept == sorted([picture(1), picture(2)])


def test_all_of_it_with_the_keyboard(site: Callable[..., Site], folder: Path, tmp_path: Path) -> None:
    page = site(corrections=str(tmp_path / "said")).open(key="")
    playwright.expect(page.get_by_label("Key for this endpoint")).to_be_focused()
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    playwright.expect(page.get_by_label("Choose images")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(folder / "dive 1" / "1.png")
    looked_at(page, 1, 1)

    def tab_to(target: Any) -> None:
        for _ in range(12):
            if target.evaluate("element => element === document.activeElement"):
                assert target.evaluate(_OUTLINE) == "solid"  # and it can be seen where the keyboard is
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"the keyboard does not reach {target}")

    row = rows_of(page).nth(0)
    tab_to(page.get_by_label("Choose a folder"))
    tab_to(page.get_by_role("button", name="Download CSV"))
    tab_to(page.get_by_label("Show"))
    tab_to(row.locator("summary"))
    page.keyboard.press("Enter")
    playwright.expect(row.locator("dl")).to_be_visible()
    tab_to(row.get_by_role("button", name="Wrong?"))
    page.keyboard.press("Enter")
    playwright.expect(row.get_by_label("It is")).to_be_focused()
    page.keyboard.press("Escape")
    playwright.expect(row.get_by_role("button", name="Wrong?")).to_be_focused()
    page.keyboard.press("Enter")
    playwright.expect(row.get_by_label("It is")).to_be_focused()
    page.keyboard.type("some")  # thing else …
    page.keyboard.press("Tab")
    playwright.expect(row.get_by_label("Its name")).to_be_focused()
    page.keyboard.type("kea")
    page.keyboard.press("Enter")
    playwright.expect(row.locator(".said")).to_have_text("Saved: you said kea")
    playwright.expect(row.get_by_role("button", name="Change")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(
    site: Callable[..., Site], folder: Path, tmp_path: Path, scheme: str
) -> None:
    made = site(corrections=str(tmp_path / "said"))
    options: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "color_scheme": scheme, "has_touch": True}
    long = tmp_path / f"{'a-very-long-name-' * 12}.png"
    long.write_bytes(picture(1))
    page = made.open(**options)
    page.get_by_label("Choose images").set_input_files([long, folder / "dive 2" / "broken.png"])
    looked_at(page, 2, 2)
    rows_of(page).nth(0).get_by_role("button", name="Wrong?").click()
    rows_of(page).nth(0).get_by_text("All classes").click()
    page.locator("#model summary").click()
    docs = made.open("/docs", key="", **options)
    docs.get_by_text("/predict").first.wait_for()
    for one in (page, docs):
        assert one.locator("html").evaluate("html => html.scrollWidth") == 390
        small = "element => element.offsetParent !== null && element.getBoundingClientRect().height < 40"
        assert [b.inner_text() for b in one.get_by_role("button").all() if b.evaluate(small)] == []


def test_an_endpoint_without_keys_asks_for_none(site: Callable[..., Site], folder: Path) -> None:
    page = site(auth="off").open(key="")
    playwright.expect(page.locator("#model")).to_be_visible()
    playwright.expect(page.get_by_label("Key for this endpoint")).to_be_hidden()
    page.get_by_label("Choose images").set_input_files(folder / "dive 1" / "1.png")
    looked_at(page, 1, 1)


def test_what_the_model_was_trained_on(site: Callable[..., Site]) -> None:
    page = site().open()
    page.locator("#model summary").click()
    text = page.locator("#model-text").inner_text().replace("\u00a0", " ")
    assert "anemone, crab, eagle ray" in text
    assert "right for 50 %" in text
    assert "between 40 % and 60 %" in text
    assert "What it cannot know" in text


def test_the_documentation_lists_every_route(site: Callable[..., Site]) -> None:
    made = site()
    page = made.open("/docs", key="")
    playwright.expect(page.get_by_role("heading", name="POST /predict")).to_be_visible()
    assert page.locator("section").filter(has_text="/predict").get_by_text("--data-binary @photo.jpg").count() > 0
    text = page.locator("main").inner_text()
    assert f"{made.url}/model" in text
    for path in ("/v1/models/", "/v2/models/", "/invocations", "/corrections", "/limits"):
        assert path in text
    assert "undefined" not in text
