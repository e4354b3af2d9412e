"""GET /v1/requests/{id}/explain: where a request's time went."""

from typing import Any

from fastapi import APIRouter, Request

from quire.errors import ClientError
from quire.server.history import MAX_TRACES
from quire.server.serving import Serving

router = APIRouter()


class RequestNotFound(ClientError):
    """No request of that id among those remembered."""

    status = 404
    type = "NotFoundError"
    code = "request_not_found"


@router.get("/v1/requests/{request_id}/explain", response_model=None)
async def explain(http: Request, request_id: str) -> dict[str, Any]:
    """Seconds that a request spent in each part of its way; the parts of a prompt sum to its whole.

    request_id: the id of the answer (chatcmpl-…, cmpl-…), or the X-Request-Id of its response.
    """
    serving: Serving = http.app.state.serving
    trace = serving.history.find(request_id)
    if trace is None:
        raise RequestNotFound(f"no request {request_id[:128]!r} among the latest {MAX_TRACES}")
    return trace.explain()
