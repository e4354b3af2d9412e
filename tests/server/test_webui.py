"""The pages' files as they are served; tests/pages uses them in a browser."""

import re
import shutil
import subprocess

import httpx
import pytest
from servers import Server, fake_model

from quire.server.webui import ASSETS, FOLDER

KINDS = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    folder = tmp_path_factory.mktemp("webui")
    with Server(folder / "log", fake_model(folder / "model"), fake=True, api_key=["key"]) as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            yield client


def test_pages_are_there_without_a_key_and_allow_no_foreign_script(http):
    for path in ("/", "/dashboard"):
        response = http.get(path)
        assert response.status_code == 200 and response.headers["content-type"] == "text/html; charset=utf-8"
        policy = dict(part.split(maxsplit=1) for part in response.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert response.headers["x-content-type-options"] == "nosniff"


def test_assets(http):
    for name in ASSETS:
        response = http.get(f"/ui/{name}")
        assert response.status_code == 200 and response.headers["content-type"].startswith(KINDS[name.split(".")[1]])
        assert response.text == (FOLDER / name).read_text(encoding="utf-8")
    for name in ("index.html", "nothing.js", "..%2fversion.py", "%2e%2e/version.py"):
        response = http.get(f"/ui/{name}")
        assert response.status_code == 404 and response.json()["error"]["type"] == "NotFoundError"


def test_pages_name_only_what_is_served():
    for page in FOLDER.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "<style" not in text and not re.search(r"\son\w+=|\sstyle=|javascript:", text)
        assert all(re.search(r'\ssrc="/ui/', tag) for tag in re.findall(r"<script[^>]*>", text))
        assert set(re.findall(r'"/ui/([^"]+)"', text)) <= set(ASSETS)
        assert not re.search(r"https?://", text)
    for script in FOLDER.glob("*.js"):
        text = script.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            script
        )
        assert set(re.findall(r'from "\./([^"]+)"', text)) <= set(ASSETS)
    assert {path.name for path in FOLDER.iterdir()} == {*ASSETS, "index.html", "dashboard.html"}


def test_both_languages_have_the_same_words():
    text = (FOLDER / "i18n.js").read_text(encoding="utf-8")
    english, chinese = (re.findall(r"(\w+): \"", part) for part in text.split("\n  zh: {"))
    assert english == chinese and len(english) == len(set(english))
    used = set()
    for path in FOLDER.iterdir():
        written = path.read_text(encoding="utf-8")
        used |= set(
            re.findall(r'data-i18n(?:-\w+)?="(\w+)"|\bword\("(\w+)"\)|\bbutton\("(\w+)"|title: "(\w+)"', written)
        )
    assert {name for groups in used for name in groups if name} <= set(english)


@pytest.mark.skipif(
    shutil.which("node") is None, reason="node, a second pair of eyes, is not installed; tests/pages runs the scripts"
)
@pytest.mark.parametrize("name", [name for name in ASSETS if name.endswith(".js")])
def test_scripts_parse(name):
    with open(FOLDER / name, "rb") as file:
        subprocess.run(["node", "--check", "--input-type=module"], stdin=file, check=True)


def test_it_can_be_switched_off(tmp_path):
    with Server(tmp_path / "log", fake_model(tmp_path / "model"), fake=True, disable_ui=True) as server:
        for path in ("/", "/dashboard", "/ui/app.js"):
            assert httpx.get(server.url + path, timeout=60).status_code == 404
