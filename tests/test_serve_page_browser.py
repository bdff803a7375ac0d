"""The page in a real browser: images in, answers, corrections, table, errors."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

from tests.browsing import HOSTILE, Site, browser, drop, folder, looked_at, playwright, rows_of, saved_table, site
from tests.people import KEY
from tests.serving import CLASSES, picture

__all__ = ["browser", "folder", "site"]


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
