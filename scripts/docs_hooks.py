"""MkDocs: files of the repository that pages link to come into the site, under files/, so that its links lead somewhere.

The pages are also read where the repository is browsed, so their links are those of the repository: ../../examples/chat.py. A link to a
folder leads to a page that lists it.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(((?:\.\./)+[^)\s#]+)(#[^)\s]*)?\)")
ICON = "src/quire/webui/icon.svg"


def outside(page: Path, target: str, docs: Path) -> str | None:
    """Path within the repository of a link's target that is not one of the pages."""
    found = (page.parent / target).resolve()
    if not found.is_relative_to(ROOT) or found.is_relative_to(docs):
        return None
    return str(found.relative_to(ROOT)) or "."


def on_files(files: Files, config: Any) -> Files:
    docs = Path(config.docs_dir).resolve()
    icon = (ROOT / ICON).read_text(encoding="utf-8")
    files.append(File.generated(config, "assets/icon.svg", content=icon))
    wanted = set()
    for page in docs.rglob("*.md"):
        for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
            if found := outside(page, target, docs):
                wanted.add(found)
    for name in sorted(wanted):
        files.append(File.generated(config, place(name), content=content(name)))
    return files


def place(name: str) -> str:
    """Where a file or folder of the repository is in the site. As plain text, which browsers show."""
    return f"files/{name.rstrip('/')}.txt" if name != "." else "files/index.txt"


def content(name: str) -> str:
    path = ROOT / name
    if path.is_dir():
        return "".join(
            f"{entry.name}{'/' * entry.is_dir()}\n" for entry in sorted(path.iterdir()) if entry.name[0] not in "._"
        )
    return path.read_text(encoding="utf-8")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    docs = Path(config.docs_dir).resolve()
    source = docs / page.file.src_uri
    depth = page.file.src_uri.count("/")

    def within_the_site(found: "re.Match[str]") -> str:
        name = outside(source, found[1], docs)
        return found[0] if name is None else f"]({'../' * depth}{place(name)})"

    return LINK.sub(within_the_site, markdown)
