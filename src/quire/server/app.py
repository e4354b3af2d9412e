"""The HTTP application: routes, error objects, and the gate around them."""

from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from quire.errors import QuireError
from quire.server import explain, health, webui
from quire.server.anthropic import routes as anthropic
from quire.server.anthropic.errors import SCHEMA as ANTHROPIC_ERROR_SCHEMA
from quire.server.errors import InternalError, error_response, http_error
from quire.server.gate import Gate
from quire.server.openai import chat, completions, models, pooling, tokenize
from quire.server.responses import routes as responses
from quire.server.serving import Serving
from quire.version import __version__

ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                **{name: {"anyOf": [{"type": "string"}, {"type": "null"}]} for name in ("type", "param", "code")},
            },
        }
    },
}


def _errors(schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """What any route may answer; in /openapi.json."""
    texts = (("4XX", "The request is at fault."), ("5XX", "The server is at fault, or not ready."))
    return {s: {"description": text, "content": {"application/json": {"schema": schema}}} for s, text in texts}


ERRORS = _errors(ERROR_SCHEMA)
ANTHROPIC_ERRORS = _errors(ANTHROPIC_ERROR_SCHEMA)
MESSAGES = {404: "there is no route {path}", 405: "{path} does not take {method}"}


def build_app(serving: Serving, max_active: int) -> ASGIApp:
    """The ASGI application of one API process. max_active: HTTP requests at once."""
    docs = not serving.args.disable_fastapi_docs
    app = FastAPI(
        title="quire",
        version=__version__,
        openapi_url="/openapi.json" if docs else None,
        docs_url="/docs" if docs else None,
        redoc_url="/redoc" if docs else None,
        redirect_slashes=False,
    )
    app.state.serving = serving
    for endpoint in (health, models, tokenize, pooling, explain, chat, completions, responses):
        app.include_router(endpoint.router, responses=ERRORS)
    app.include_router(anthropic.router, responses=ANTHROPIC_ERRORS)
    if not serving.args.disable_ui:
        app.include_router(webui.router)
    app.add_exception_handler(QuireError, _quire_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    gate = Gate(app, serving, max_active)
    if not serving.args.allowed_origins:
        return gate
    return CORSMiddleware(  # outermost, so that pages may read the gate's errors too
        gate,
        allow_origins=serving.args.allowed_origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["X-Request-Id", "X-Quire-Ignored", "Retry-After"],
    )


async def _quire_error(http: Request, error: Exception) -> Response:
    if isinstance(error, QuireError):
        return error_response(error, http.url.path, http.state.request_id)
    raise error


async def _unexpected(http: Request, _: Exception) -> Response:
    """A fault of ours, which the gate logs."""
    return error_response(InternalError("the server failed on this request"), http.url.path, http.state.request_id)


async def _http_error(http: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    text = MESSAGES.get(error.status_code, str(error.detail))
    message = text.format(path=repr(http.url.path[:200]), method=http.method)
    return http_error(error.status_code, message, dict(error.headers or {}), http.url.path)
