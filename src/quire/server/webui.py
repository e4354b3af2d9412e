"""The pages for people: `/` is a chat, `/dashboard` a live view of /metrics. Static files that use the public API alone."""

from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

router = APIRouter(include_in_schema=False)
FOLDER = Path(__file__).parents[1] / "webui"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts, styles and requests of this server only, nothing inline: text of a model can neither run nor send anything.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
ASSETS = ("api.js", "app.js", "dashboard.js", "i18n.js", "icons.js", "markdown.js", "style.css", "icon.svg")


@router.get("/", response_model=None)
async def chat_page() -> Response:
    """The chat page."""
    return _file("index.html")


@router.get("/dashboard", response_model=None)
async def dashboard() -> Response:
    """The live page."""
    return _file("dashboard.html")


@router.get("/ui/{name}", response_model=None)
async def asset(name: str) -> Response:
    """What the pages are made of. Raises HTTPException."""
    if name not in ASSETS:
        raise HTTPException(404)
    return _file(name)


def _file(name: str) -> Response:
    path = FOLDER / name
    return Response(path.read_bytes(), headers=HEADERS, media_type=TYPES[path.suffix])
