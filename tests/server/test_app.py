"""What nobody expected: an error object in the client's form, one logged traceback, and a server that goes on."""

import asyncio

import httpx
import pytest

from quire.config import EngineArgs
from quire.engine.client import EngineClient
from quire.server.app import build_app
from quire.server.options import ServerArgs
from quire.server.serving import Serving


@pytest.fixture
def gate():
    serving = Serving(EngineArgs(), ServerArgs(), EngineClient(token="t"))
    made = build_app(serving, max_active=5)

    async def boom() -> None:
        raise KeyError("a secret")

    for path in ("/boom", "/v1/messages/boom"):
        made._app.add_api_route(path, boom)
    return made


def get(gate, path):
    async def main():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://x") as client:
            return await client.get(path)

    return asyncio.run(main())


def test_a_fault_of_ours_is_a_500_without_details(gate, caplog):
    response = get(gate, "/boom")
    assert response.status_code == 500 and response.headers["x-request-id"]
    assert response.json()["error"] == {"message": "the server failed on this request", "type": "server_error", "param": None, "code": "internal_error"}  # fmt: skip
    assert "secret" not in response.text and len(caplog.records) == 1 and "KeyError" in caplog.text
    other = get(gate, "/v1/messages/boom").json()
    assert other["type"] == "error" and other["error"]["type"] == "api_error"
    assert get(gate, "/version").status_code == 200


def test_while_the_model_is_loaded(gate):
    assert get(gate, "/health").status_code == 503
    assert get(gate, "/v1/responses/none").status_code == 404
