"""Routes for operators: health, load, version, metrics."""

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from quire.errors import EngineUnavailable
from quire.server.errors import error_response
from quire.server.serving import Serving
from quire.version import __version__

router = APIRouter()
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/health", response_model=None, response_class=Response)
@router.get("/ready", response_model=None, response_class=Response, operation_id="ready")
@router.get("/ping", response_model=None, response_class=Response, operation_id="ping")
@router.post("/ping", response_model=None, response_class=Response, operation_id="ping_post")
async def health(http: Request) -> Response:
    """200 with an empty body when requests can be computed; 503 while the engine starts, hangs or is gone, and while draining."""
    serving: Serving = http.app.state.serving
    if serving.healthy:
        return Response(status_code=200)
    return error_response(EngineUnavailable("the server is stopping" if serving.draining else "no engine is ready"))


@router.get("/version", response_model=None)
async def version() -> dict[str, str]:
    """quire's version."""
    return {"version": __version__}


@router.get("/load", response_model=None)
async def load(http: Request) -> dict[str, int]:
    """Requests under way, as load balancers ask."""
    serving: Serving = http.app.state.serving
    return {"server_load": len(serving.client.journal.entries)}


@router.get("/metrics", response_model=None, response_class=PlainTextResponse)
async def metrics(http: Request) -> Response:
    """Prometheus metrics."""
    serving: Serving = http.app.state.serving
    return Response(serving.render_metrics(), media_type=METRICS_TYPE)
