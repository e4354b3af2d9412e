"""Routes of pooling models. Models here generate text, so each answers with an error that says so."""

from fastapi import APIRouter
from starlette.responses import Response

from quire.errors import InvalidRequest

router = APIRouter()
ROUTES = (
    "/v1/embeddings", "/v1/score", "/score", "/v1/rerank", "/v2/rerank", "/rerank", "/classify", "/pooling",
)  # fmt: skip
BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}


async def refuse() -> Response:
    """Embeddings, scores and classes need a pooling model; this one generates text."""
    raise InvalidRequest("The model does not support Embeddings API", "model")


for _path in ROUTES:
    _name = _path.strip("/").replace("/", "_")
    router.add_api_route(
        _path, refuse, methods=["POST"], operation_id=_name, name=_name, openapi_extra=BODY, response_model=None
    )
