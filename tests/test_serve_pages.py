"""The files of the page as they come over HTTP: what is there, what is not, and what a browser may do with them."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Client, plain_endpoint

PAGE = Path(__file__).resolve().parents[1] / "serve" / "page"
FILES = sorted(path.name for path in PAGE.iterdir())
SITE = ["/", "/docs", *(f"/page/{name}" for name in FILES)]


def client_of(bundle: str, **settings: Any) -> Client:
    return Client(plain_endpoint(bundle, **settings)[1])


@pytest.fixture(scope="module")
def client(tiny_bundle: str) -> Client:
    return client_of(tiny_bundle)


@pytest.mark.parametrize("path", SITE)
def test_every_file_comes_with_its_kind_and_the_rules_for_the_browser(client: Client, path: str) -> None:
    response = client.get(path)
    name = {"/": "index.html", "/docs": "docs.html"}.get(path, path.rpartition("/")[2])
    assert response.status_code == 200
    assert response.content == (PAGE / name).read_bytes()
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert response.headers["content-type"].partition(";")[0] == kinds[name.rpartition(".")[2]]
    policy = dict(rule.split(" ", 1) for rule in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert response.headers["x-content-type-options"] == "nosniff"

    head = client.request("HEAD", path)
    assert (head.status_code, head.content) == (200, b"")
    again = client.request("GET", path, headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.request("GET", path, headers={"if-none-match": '"another"'}).status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "..%2fpages.py", "%2e%2e/pages.py", "../pages.py", ".", "a/b", ""])
def test_nothing_else_is_served(client: Client, name: str) -> None:
    response = client.get(f"/page/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_limits_say_what_the_configuration_says(tiny_bundle: str) -> None:
    limits = client_of(tiny_bundle, max_body_mb=2, max_files=7, body_timeout_s=9).get("/limits").json()
    assert limits == {"max_body_bytes": 2**21, "max_files": 7, "body_timeout_s": 9.0, "corrections": False}


@pytest.mark.parametrize("name", FILES)
def test_no_file_asks_for_anything_from_elsewhere_or_makes_markup_of_text(name: str) -> None:
    text = (PAGE / name).read_text()
    found = set(re.findall(r"[a-z]+://[^\s\"'`)]+", text))
    assert found <= {"http://www.w3.org/2000/svg"}, found
    for banned in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage", "cookie"):
        assert banned not in text
    if name.endswith(".html"):
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=", text)


def test_every_file_that_is_named_is_there() -> None:
    for name in FILES:
        text = (PAGE / name).read_text()
        named = re.findall(r'(?:href|src)="page/([^"]+)"', text) + re.findall(r'from "\./([^"]+)"', text)
        assert set(named) <= set(FILES)
