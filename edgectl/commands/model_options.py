"""Options that `serve` and `generate --local` share: which model, and how it is run."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.types import BoundaryType, Codec, Quantization

Model = Annotated[str, typer.Option(help="Model directory, or owner/name on the Hugging Face hub.")]
Quantize = Annotated[Quantization, typer.Option(help="What the weights are run as.")]
BlockSize = Annotated[int | None, typer.Option(help="Weights that share a scale in int8 and int4.", show_default=False)]
Boundary = Annotated[BoundaryType, typer.Option(help="Type the hidden states have between layers.")]
WireCodec = Annotated[
    Codec | None, typer.Option("--codec", help="Type on the wire. Default: the boundary type.", show_default=False)
]
Context = Annotated[int | None, typer.Option(help="Most tokens of prompt and answer together.", show_default=False)]
