"""Reading the project's Markdown files, for tests that hold prose to the code."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
READMES = (ROOT / "README.md", ROOT / "README_zh.md")
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
GUIDE_ZH = sorted((ROOT / "docs" / "guide" / "zh").glob("*.md"))
RUN_DOCS = (*READMES, *GUIDE)  # the code of the Chinese pages is that of the English ones: tests/docs
USER_DOCS = (*RUN_DOCS, *GUIDE_ZH)
ALL_DOCS = sorted({
    *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("training/*.md"), *ROOT.glob("benchmarks/*.md"),
    *(ROOT / "src").rglob("*.md"),
})  # fmt: skip
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
MARKER = re.compile(r"<!-- (\w+)(?:: ([^>]*?))? -->\n\Z")
SPAN = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: where, its language, its text, and the comment <!-- name: value --> on the line before it."""

    path: Path
    line: int
    language: str
    text: str
    marker: tuple[str, str] | None

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks(*paths: Path, language: str = "") -> Iterator[Block]:
    """Fenced blocks of the files, in order; of one language if it is named."""
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for found in FENCE.finditer(text):
            if language in ("", found[1]):
                marker = MARKER.search(text[: found.start()])
                line = text.count("\n", 0, found.start()) + 1
                yield Block(path, line, found[1], found[2], (marker[1], marker[2] or "") if marker else None)


def prose(path: Path) -> str:
    """The text without its fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def table(path: Path, marker: str) -> list[list[str]]:
    """Cells of the table below <!-- marker -->, its two head lines left out."""
    _, found, rest = path.read_text(encoding="utf-8").partition(f"<!-- {marker} -->\n")
    assert found, f"{path.name} has no <!-- {marker} -->"
    lines = rest.split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def spans(text: str) -> list[str]:
    """The pieces of code within a text."""
    return SPAN.findall(text)


def shell_lines(text: str) -> list[str]:
    """Commands of a shell block: continued lines joined, comments and blank lines gone."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in joined.splitlines()]
    return [line for line in lines if line]
