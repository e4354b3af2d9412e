"""The guide in two languages says the same, its reference pages are those of this program, and the site is built without a complaint."""

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
from markdown import GUIDE, GUIDE_ZH, ROOT, blocks, prose, shell_lines, spans

PAGES = [path.name for path in GUIDE]
GENERATED = {"cli.md", "http-api.md", "python-api.md"}
WRITTEN = [name for name in PAGES if name not in GENERATED]
FOLDERS = (ROOT / "docs" / "guide", ROOT / "docs" / "guide" / "zh")
LINK = re.compile(r"\]\(((?!https?:)[^)\s#]+)")
NUMBER = re.compile(r"(?<![\w.])\d[\d,.]*\d")  # of two digits and more
ERROR = re.compile(r"^### `(.*)`$", re.M)


def test_every_page_is_there_in_both_languages():
    assert [path.name for path in GUIDE_ZH] == PAGES


def bare(language: str, text: str) -> list[str]:
    """Code without its comments, which each language has in its own words."""
    if language == "python":
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        return [token.string for token in tokens if token.type != tokenize.COMMENT and token.string.strip()]
    return shell_lines(text) if language == "bash" else text.splitlines() if language else []


@pytest.mark.parametrize("name", WRITTEN)
def test_both_languages_have_the_same_code(name: str):
    """Blocks with their markers, so that what runs for one language has run for both."""
    english, chinese = (
        [
            (block.language, block.marker, bare(block.language, block.text))
            for block in blocks(folder / name)
            if block.language != "text"
        ]
        for folder in FOLDERS
    )
    assert english == chinese


@pytest.mark.parametrize("name", WRITTEN)
def test_both_languages_name_the_same_things(name: str):
    """Flags, fields, commands, routes, links, error texts, and the shape of the page."""
    english, chinese = (prose(folder / name) for folder in FOLDERS)
    assert set(spans(english)) == set(spans(chinese))
    assert ERROR.findall(english) == ERROR.findall(chinese)
    assert set(NUMBER.findall(english)) == set(NUMBER.findall(chinese))
    assert re.findall(r"^#+", english, re.M) == re.findall(r"^#+", chinese, re.M)
    targets = [
        {Path(target).name.replace("README_zh.md", "README.md") for target in LINK.findall(text)}
        for text in (english, chinese)
    ]
    assert targets[0] == targets[1]


def test_the_reference_pages_are_those_of_this_program():
    done = subprocess.run(
        [sys.executable, "scripts/reference.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nmake docs-reference writes them"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both parts of the site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    for config, place in (("mkdocs.yml", folder), ("mkdocs.zh.yml", folder / "zh")):
        command = [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--config-file",
            config,
            "--site-dir",
            str(place),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_is_whole_and_loads_nothing_from_elsewhere(site: Path):
    for source in (*GUIDE, *GUIDE_ZH):
        page = site / source.relative_to(FOLDERS[0]).with_suffix(".html")
        html = page.read_text(encoding="utf-8")
        markdown = source.read_text(encoding="utf-8")
        assert html.count("<table") == len(re.findall(r"^\|---", markdown, re.M))
        assert html.count("<pre") == markdown.count("\n```") // 2
        loaded = re.findall(
            r'<(?:script|img)[^>]* src="?([^">\s]+)|<link[^>]*rel="?stylesheet"?[^>]*href="?([^">\s]+)', html
        )
        assert loaded and not [found for pair in loaded for found in pair if re.match(r"(https?:)?//", found)]
        for target in set(re.findall(r'<a [^>]*href="?([^"#>\s]+)', html)):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).resolve().exists(), f"{page.name} links to {target}"
