"""`edgectl generate`: one answer, from a running coordinator or from a model in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgectl.commands.model_options import BlockSize, Boundary, Context, Model, Quantize
from edgectl.output import emit, emit_json
from planner.types import BoundaryType, Quantization

if TYPE_CHECKING:
    from edgectl.client import Delta

Body = dict[str, object]


@dataclass(slots=True)
class Collected:
    """An answer as it grows."""

    text: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.ids += delta.token_ids
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.usage = delta.usage or self.usage

    def as_json(self) -> dict[str, object]:
        return {
            "text": "".join(self.text),
            "ids": self.ids,
            "finish_reason": self.finish_reason,
            "usage": self.usage,
        }


def generate(
    prompt: Annotated[str, typer.Argument(help="What to go on from; with --chat, what to answer.")],
    *,
    url: Annotated[str | None, typer.Option(help="The coordinator's HTTP address.", envvar="EDGE_URL")] = None,
    cluster: Annotated[Path | None, typer.Option(help="cluster.toml whose coordinator is asked.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 128,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0, help="0 takes the likeliest token.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Nucleus sampling.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Use the model's chat template.")] = False,
    ids: Annotated[bool, typer.Option("--ids", help="Print the token ids on a last line.")] = False,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after an end-of-text token.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of a stream.")] = False,
    local: Annotated[bool, typer.Option("--local", help="Run --model in this process, without a cluster.")] = False,
    model: Model = "",
    quantize: Quantize = "fp32",
    block_size: BlockSize = None,
    boundary: Boundary = "fp16",
    context: Context = None,
) -> None:
    """Stream one answer to stdout. Ctrl-C cancels it."""
    body: Body = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    body |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    body |= {"ignore_eos": True} if ignore_eos else {}
    collected = Collected()

    def show(delta: Delta) -> None:
        collected.add(delta)
        if not as_json:
            emit(delta.text, end="")

    if local:
        if not model:
            raise typer.BadParameter("--local needs a model directory", param_hint="--model")
        _generate_here(model, (quantize, block_size, boundary, context), body, chat, show)
    else:
        _generate_there(url, cluster, body, "/v1/chat/completions" if chat else "/v1/completions", show)
    if as_json:
        emit_json(collected.as_json())
        return
    emit("")
    if ids:
        emit("ids: " + " ".join(map(str, collected.ids)))


def _generate_there(
    url: str | None, cluster: Path | None, body: Body, path: str, show: Callable[[Delta], None]
) -> None:
    from edgectl.client import Client, coordinator_url

    extras = {"return_token_ids": True, "stream_options": {"include_usage": True}}
    with Client(coordinator_url(url, cluster)) as client:
        for delta in client.stream(path, {**body, "model": client.model(), **extras}):
            show(delta)


def _generate_here(
    model: str,
    asked: tuple[Quantization, int | None, BoundaryType, int | None],
    body: Body,
    chat: bool,
    show: Callable[[Delta], None],
) -> None:
    import asyncio

    from edgectl.local_answer import answer_here
    from edgectl.planning import DEFAULT_BLOCK_SIZE, ServingOptions

    quantization, block_size, boundary, context = asked
    options = ServingOptions(
        quantization=quantization, block_size=block_size or DEFAULT_BLOCK_SIZE, boundary=boundary, context=context
    )
    asyncio.run(answer_here(model, options, body, chat=chat, show=show))
