"""GET /v1/models."""

import time
from typing import Any

from fastapi import APIRouter, Request

from quire.errors import ModelNotFound
from quire.server.serving import Serving

router = APIRouter()
STARTED_AT = int(time.time())
PERMISSION = {
    "id": "modelperm-quire", "object": "model_permission", "created": STARTED_AT, "allow_create_engine": False,
    "allow_sampling": True, "allow_logprobs": True, "allow_search_indices": False, "allow_view": True,
    "allow_fine_tuning": False, "organization": "*", "group": None, "is_blocking": False,
}  # fmt: skip


@router.get("/v1/models", response_model=None)
async def list_models(http: Request) -> dict[str, Any]:
    """The model under each of its names."""
    serving: Serving = http.app.state.serving
    return {"object": "list", "data": [_card(name, serving) for name in serving.names]}


@router.get("/v1/models/{name:path}", response_model=None)
async def one_model(name: str, http: Request) -> dict[str, Any]:
    """One model by name."""
    serving: Serving = http.app.state.serving
    if name not in serving.names:
        raise ModelNotFound(f"The model `{name}` does not exist; this server has {', '.join(serving.names)}.")
    return _card(name, serving)


def _card(name: str, serving: Serving) -> dict[str, Any]:
    config = serving.ready.config if serving.ready else None
    return {
        "id": name, "object": "model", "created": STARTED_AT, "owned_by": "quire",
        "root": config.model_name if config else name, "parent": None,
        "max_model_len": config.max_model_len if config else None, "permission": [PERMISSION],
    }  # fmt: skip
