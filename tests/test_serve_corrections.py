"""People's corrections over HTTP: what is kept, what a search reads of it, limits, and several replicas at once."""

import asyncio
import csv
import io
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from data import store
from data.collection import Collection, DataConfig, load_collection
from serve.corrections import correctionroutes
from serve.corrections.keeping import COLUMNS, TABLE, Correction, Corrections
from serve.endpoint import Endpoint
from serve.errors import ApiError, install_error_handlers
from serve.scopestate import note
from serve.settings import EndpointConfig
from tests.images_zoo import zoo
from tests.serving import Client, files, picture, plain_endpoint

ROOMY = 2**30
INVISIBLE = "\u200b\u00ad\u200f\u061c\u3164\u115f\u1160\uffa0\u2800\u034f\u2060\u180e\ufe0f\U000e0041\U000e0100"


def client_of(bundle: str, folder: Path | str, **settings: Any) -> Client:
    return Client(plain_endpoint(bundle, corrections=str(folder), **settings)[1])


def correct(client: Client, blob: bytes, label: str, **fields: str) -> httpx.Response:
    return client.post("/corrections", files=files([blob]), data={"label": label, **fields})


def table(folder: Path | str) -> list[dict[str, str]]:
    text = store.read(store.join(str(folder), TABLE)).decode()
    return list(csv.DictReader(text.splitlines()))


def searched(folder: Path | str, cache: Path) -> Collection:
    """What `tune/search.py --data FOLDER/corrections.csv` would train on."""
    data = store.join(str(folder), TABLE)
    return load_collection(DataConfig(data=data, image_size=8, cache_dir=str(cache)))


def labels_of(collection: Collection) -> list[str]:
    return sorted(collection.table["label"])


def code_of(response: httpx.Response) -> str:
    return str(response.json()["error"]["code"])


def test_off_unless_a_folder_is_named(tiny_bundle: str) -> None:
    client = Client(plain_endpoint(tiny_bundle)[1])
    response = correct(client, picture(1), "crab")
    assert (response.status_code, code_of(response)) == (404, "corrections_off")
    assert client.get("/limits").json()["corrections"] is False


def test_a_correction_is_a_row_and_an_image_that_the_next_search_reads(tiny_bundle: str, tmp_path: Path) -> None:
    folder = tmp_path / "said"
    client = client_of(tiny_bundle, folder)
    assert client.get("/limits").json()["corrections"] is True
    said = {"crab": 4, "naïve, “sea” sponge; 海綿": 4}
    for number, label in enumerate(label for label, times in said.items() for _ in range(times)):
        group = f"dive {number % 4}"
        fields = {"predicted": "-sand", "probability": "0.75", "model": "3a64bd437ccc", "group": group}
        response = correct(client, picture(number), label, **fields)
        assert response.status_code == 200
        assert response.json()["label"] == label
        assert response.json()["before"] is None
        assert (folder / response.json()["image"]).read_bytes() == picture(number)
    rows = table(folder)
    assert tuple(rows[0]) == COLUMNS
    assert rows[0]["predicted"] == "'-sand"  # no formula
    assert (rows[0]["probability"], rows[0]["model"], rows[0]["original"]) == ("0.750000", "3a64bd437ccc", "0.png")
    collection = searched(folder, tmp_path / "cache")
    assert labels_of(collection) == sorted(label for label, times in said.items() for _ in range(times))
    assert set(collection.table["group"]) == {f"dive {n}" for n in range(4)}
    assert set(collection.problems["problem"]) <= {"few_images"}


def test_the_key_and_the_request_are_noted(tiny_bundle: str, tmp_path: Path) -> None:
    _, app = plain_endpoint(tiny_bundle, corrections=str(tmp_path))

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        note(scope, "key", "@ana")
        note(scope, "request_id", "r-1")
        await app(scope, receive, send)

    assert correct(Client(outer), picture(1), "crab").status_code == 200  # type: ignore[arg-type]
    assert [(row["corrected_by"], row["request"]) for row in table(tmp_path)] == [("'@ana", "r-1")]


def test_a_noaa_frame_brings_its_video_as_group(tiny_bundle: str, tmp_path: Path) -> None:
    name = "56321614_EX1708_VID_20170926T212000Z_ROVHD.mp4_1378.png"
    client = client_of(tiny_bundle, tmp_path)
    client.post("/corrections", files={"image": (name, picture(1))}, data={"label": "crab"})
    assert table(tmp_path)[0]["group"] == "56321614_EX1708_20170926T212000Z"


def test_an_image_is_kept_once_and_the_later_label_counts(tiny_bundle: str, tmp_path: Path) -> None:
    client = client_of(tiny_bundle, tmp_path)
    before = [correct(client, picture(1), label).json()["before"] for label in ("crab", "crab", "eel", "eel")]
    assert before == [None, "crab", "crab", "eel"]
    assert [row["label"] for row in table(tmp_path)] == ["eel"]
    assert len(list((tmp_path / "images").iterdir())) == 1


def test_each_image_of_the_zoo_is_kept_with_its_formats_suffix_or_refused_by_name(tmp_path: Path) -> None:
    corrections = Corrections(str(tmp_path), max_rows=999, max_bytes=ROOMY)
    suffixes = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "PPM": ".ppm"}

    async def add_all() -> None:
        for nasty in zoo():
            if nasty.expected == "ok":
                kind = str(Image.open(io.BytesIO(nasty.blob)).format)
                saved = await corrections.add(Correction(nasty.blob, "crab"))
                assert Path(saved.path).suffix == suffixes.get(kind, f".{kind.lower()}")
            else:
                with pytest.raises(ApiError) as refused:
                    await corrections.add(Correction(nasty.blob, "crab"))
                assert (refused.value.status, refused.value.code) == (422, nasty.expected)

    asyncio.run(add_all())


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("=1+1", "formula"),
        ("-crab", "formula"),
        ("+crab", "formula"),
        ("@crab", "formula"),
        ("two\nlines", "line ends"),
        ("a\x00b", "cannot be seen"),
        ("\u202egnp.exe", "cannot be seen"),
        ("x" * 101, "101 characters"),
        ("\u0301", "nothing that can be seen"),
    ],
)
def test_labels_that_cannot_be_kept(tiny_bundle: str, tmp_path: Path, label: str, says: str) -> None:
    response = correct(client_of(tiny_bundle, tmp_path), picture(1), label)
    assert (response.status_code, code_of(response)) == (422, "bad_label")
    assert says in response.json()["error"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_a_label_of_what_nobody_sees_is_refused_and_every_script_is_kept(tiny_bundle: str, tmp_path: Path) -> None:
    client = client_of(tiny_bundle, tmp_path)
    # Those that join or part letters stay between letters of scripts that need them: Persian, Hindi, Sinhala.
    persian, misplaced = "می\u200cکنم", ("cr\u200dab", "می\u200c", "\u200dمی", "می\u200c\u200cکنم")
    for label in (*INVISIBLE, *(f"cr{c}ab" for c in INVISIBLE), *misplaced):
        response = correct(client, picture(1), label)
        assert (response.status_code, code_of(response)) == (422, "bad_label")
        assert "seen" in response.json()["error"]["message"]
    assert list(tmp_path.iterdir()) == []
    for label in (persian, "क्\u200dष", "ශ්\u200dරී", "ネコ", "?", "naïve “sea”, 5°", "Ελλάδα 2"):
        response = correct(client, picture(1), label)
        assert (response.status_code, response.json()["label"]) == (200, label)


def test_a_group_is_seen_as_well_and_what_a_model_said_is_as_it_said_it(tiny_bundle: str, tmp_path: Path) -> None:
    client = client_of(tiny_bundle, tmp_path)
    assert code_of(correct(client, picture(1), "crab", group="di\u200bve")) == "bad_group"
    assert correct(client, picture(1), "crab", group="", predicted="cr\u00adab").status_code == 200


def test_other_forms_that_are_refused(tiny_bundle: str, tmp_path: Path) -> None:
    client = client_of(tiny_bundle, tmp_path)
    refused = {
        "not_an_image": client.post("/corrections", files=files([b"a text"]), data={"label": "crab"}),
        "truncated": client.post("/corrections", files=files([picture(1)[:200]]), data={"label": "crab"}),
        "not_one_image": client.post("/corrections", files=files([picture(1), picture(2)]), data={"label": "crab"}),
        "bad_probability": correct(client, picture(1), "crab", probability="nan"),
        "bad_group": correct(client, picture(1), "crab", group="=dive"),
        "bad_predicted": correct(client, picture(1), "crab", predicted="x" * 101),
    }
    assert {code: code_of(response) for code, response in refused.items()} == {code: code for code in refused}
    assert {response.status_code for response in refused.values()} == {422}
    assert code_of(client.post("/corrections", content=picture(1))) == "not_one_image"
    assert list(tmp_path.iterdir()) == []


def test_limits_hold_across_restarts(tiny_bundle: str, tmp_path: Path) -> None:
    for number, expected in enumerate([200, 200, 507]):
        client = client_of(tiny_bundle, tmp_path, max_corrections=2)  # each a fresh replica
        assert correct(client, picture(number), "crab").status_code == expected
    assert code_of(correct(client, picture(2), "crab")) == "corrections_full"
    assert correct(client, picture(0), "eel").status_code == 200  # another label for an image that is there

    size = len(picture(0))
    one_more = client_of(tiny_bundle, tmp_path, max_corrections_mb=(2.5 * size) / 2**20)
    assert code_of(correct(one_more, picture(3), "crab")) == "corrections_full"
    assert len(table(tmp_path)) == 2


def test_another_folder_in_the_configuration_counts_from_the_next_request(tiny_bundle: str, tmp_path: Path) -> None:
    endpoint, app = Endpoint(), FastAPI()
    install_error_handlers(app)
    app.include_router(correctionroutes.router(endpoint))
    for name in ("first", "second"):
        config = EndpointConfig(tiny_bundle, corrections=str(tmp_path / name))
        asyncio.run(endpoint.reconfigure(config.as_user_config()))
        assert correct(Client(app), picture(1), "crab").status_code == 200
        assert len(table(tmp_path / name)) == 1


def test_a_place_that_cannot_be_written_says_so_without_naming_it(
    tiny_bundle: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    response = correct(client_of(tiny_bundle, tmp_path / "file"), picture(1), "crab")
    assert (response.status_code, code_of(response)) == (503, "corrections_unwritable")
    assert str(tmp_path) not in response.text
    assert str(tmp_path) in caplog.text


def test_replicas_that_write_at_once_lose_no_row_and_tear_none(tmp_path: Path) -> None:
    replicas = [Corrections(str(tmp_path), max_rows=1000, max_bytes=ROOMY) for _ in range(4)]

    def write(which: int) -> None:
        for number in range(8):
            asyncio.run(replicas[which].add(Correction(picture(100 * which + number, 10), f"label {which}")))
            asyncio.run(replicas[which].add(Correction(picture(number, 10), "shared")))

    threads = [threading.Thread(target=write, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = table(tmp_path)
    assert len(rows) == 8 + 3 * 8  # images 0 to 7 belong to all four
    assert len({row["path"] for row in rows}) == len(rows)
    assert all(None not in row.values() for row in rows)


def test_a_table_that_fell_behind_is_made_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Corrections(str(tmp_path), max_rows=9, max_bytes=ROOMY)
    asyncio.run(first.add(Correction(picture(1), "crab")))
    (tmp_path / TABLE).unlink()
    (tmp_path / "rows" / "f00.csv").write_text("not ours")
    assert Corrections(str(tmp_path), max_rows=9, max_bytes=ROOMY).refresh() == 1
    assert [row["label"] for row in table(tmp_path)] == ["crab"]
    assert "f00.csv: not a correction's row" in caplog.text
    (next((tmp_path / "rows").glob("[!f]*.csv"))).unlink()  # the operator took one back
    assert first.refresh() == 0


def test_corrections_in_a_bucket(tiny_bundle: str, bucket_place: str, tmp_path: Path) -> None:
    clients = [client_of(tiny_bundle, bucket_place, max_corrections=8) for _ in range(2)]
    for number in range(8):
        label = ("crab", "eel")[number % 2]
        assert correct(clients[number // 2 % 2], picture(number), label, group=f"dive {number // 2}").status_code == 200
    assert code_of(correct(clients[0], picture(9), "crab")) == "corrections_full"
    assert correct(clients[1], picture(0), "eel").json()["before"] == "crab"
    assert labels_of(searched(bucket_place, tmp_path)) == ["crab"] * 3 + ["eel"] * 5
    missing = client_of(tiny_bundle, "s3://no-such-bucket-here/x")
    assert code_of(correct(missing, picture(1), "crab")) == "corrections_unwritable"
