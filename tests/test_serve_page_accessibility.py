"""The page in a real browser, for everybody: with the keyboard alone, on a phone, in the dark."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browsing import Site, browser, folder, looked_at, playwright, rows_of, site
from tests.people import KEY
from tests.serving import picture

__all__ = ["browser", "folder", "site"]

# A file input is not seen; its label is.
_OUTLINE = "e => getComputedStyle(e.matches('.file input') ? e.nextElementSibling : e).outlineStyle"


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
