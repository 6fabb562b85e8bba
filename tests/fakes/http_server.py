"""A real server on a loopback port, in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache

import httpx

from edgectl.server import Clocks, create_app, serve_http
from edgectl.tokenizer import Tokenizer, load_tokenizer
from tests.fakes.fake_engine import MODEL_DIR, FakeEngine


@cache
def bundled_tokenizer() -> Tokenizer:
    return load_tokenizer(MODEL_DIR, vocab_size=4096)


@dataclass
class Served:
    engine: FakeEngine
    port: int
    client: httpx.AsyncClient

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def post(self, path: str, **body: object) -> httpx.Response:
        """POST with the served model filled in; a value of `...` leaves a field out."""
        fields = {"model": self.engine.model, **body}
        return await self.client.post(path, json={k: v for k, v in fields.items() if v is not ...})


@asynccontextmanager
async def serving(
    engine: FakeEngine,
    *,
    tokenizer: Tokenizer | None = None,
    api_keys: Collection[str] | None = None,
    clocks: Clocks | None = None,
    sessions_per_key: int = 0,
) -> AsyncIterator[Served]:
    """The app over `engine`, until the block ends."""
    app = create_app(
        engine, tokenizer or bundled_tokenizer(), api_keys=api_keys, clocks=clocks, sessions_per_key=sessions_per_key
    )
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve_http(app, "127.0.0.1", 0, lambda _, port: ready.set_result(port), patience_s=0))
    try:
        port = await asyncio.wait_for(ready, 10)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield Served(engine, port, client)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
