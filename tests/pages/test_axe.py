"""axe-core finds nothing on the two pages: in both languages, light and dark, on a desk and on a phone; nor is the console used."""

import json
import shutil
from pathlib import Path

import pytest
from browser import Browser
from environments import NoEnvironment, node_project
from servers import Server

READY = "document.querySelector('#status.ready') && document.querySelector('#model-name').textContent !== '…'"
DONE = "document.querySelector('#stop').hidden && document.querySelectorAll('.message').length === 2"
SIZES = ((1280, 800), (390, 844))
MARKDOWN = "# A\\n\\n- b `c`\\n\\n```py\\nprint(1)\\n```\\n\\n| a | b |\\n|---|---|\\n| 1 | [2](https://example.org) |\\n\\n> q"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("axe") / "log", None) as made:
        yield made


@pytest.fixture(scope="module")
def axe() -> str:
    """Source of axe-core, as tests/pages/axe/package-lock.json has it."""
    if not shutil.which("npm"):
        pytest.skip("axe-core comes by npm, and there is none")
    try:
        folder = node_project(Path(__file__).parent / "axe")
    except NoEnvironment as error:
        pytest.skip(f"axe-core cannot be had: {str(error)[-300:]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


def faults(page: Browser, axe: str) -> list[str]:
    """What axe finds, with the places; of whatever impact."""
    page.run(f"{axe}; 0")
    found = json.loads(
        page.run("axe.run(document, {resultTypes: ['violations']}).then((r) => JSON.stringify(r.violations))")
    )
    assert isinstance(found, list)
    return [f"{fault['id']}: {[node['html'][:120] for node in fault['nodes']]}" for fault in found]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_pages_have_no_fault(server: Server, axe: str, language: str, dark: bool):
    with Browser(language) as page:
        for width, height in SIZES:
            page.resize(width, height, dark)
            page.go(server.url + "/", READY)
            page.click("#new")
            assert faults(page, axe) == []
            page.click(".chip")
            page.wait(DONE)
            # Everything that an answer may hold, as it is drawn.
            page.run(
                "import('/ui/markdown.js').then((m) => document.querySelector('.assistant .body')"
                f".append(m.markdown(\"{MARKDOWN}\", {{copy: 'Copy', copied: 'Copied'}})))"
            )
            page.click("#toggle-settings")
            assert faults(page, axe) == []
            page.go(server.url + "/dashboard", READY)
            page.wait("document.querySelectorAll('.card').length === 9")
            assert faults(page, axe) == []
        assert page.complaints == []


def test_axe_sees_faults(server: Server, axe: str):
    """A page with a picture without words and pale letters is not passed."""
    with Browser() as page:
        page.go(server.url + "/", READY)
        page.run(
            "document.querySelector('main').append(Object.assign(document.createElement('img'), {src: '/ui/icon.svg'})), "
            "Object.assign(document.querySelector('.welcome p').style, {color: '#ddd'}), 0"
        )
        found = " ".join(faults(page, axe))
        assert "image-alt" in found and "color-contrast" in found
