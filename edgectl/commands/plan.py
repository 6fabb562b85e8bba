"""`edgectl plan`: which layers on which device, what to expect of it, and whether to split at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from edgectl.commands.model_options import BlockSize
from planner.types import Codec, Quantization
from planner.workload import Objective, Privacy

if TYPE_CHECKING:
    from edgectl.plan_inputs import PlanOptions
    from planner.answer import Answer

_Result = TypeVar("_Result")


Model = Annotated[
    str, typer.Option(help="A name like llama2-13b, a model directory, or its config.json. No weights needed.")
]
ProfileFile = Annotated[
    Path | None, typer.Option(help="Profile of `edgectl profile`. Default: the newest.", show_default=False)
]
Testbed = Annotated[str | None, typer.Option(help="A testbed of a paper: edgeshard-paper.")]
Devices = Annotated[str | None, typer.Option(help='Devices nobody measured, like "agx-orin-32gb*12,rtx-3090".')]
Links = Annotated[Path | None, typer.Option(help="File of links, TOML or JSON.", show_default=False)]
Source = Annotated[str | None, typer.Option(help="Device that has the prompt. Default: the first.")]
Prompt = Annotated[int | None, typer.Option(help="Tokens of a prompt. Default: 32.", show_default=False)]
Tokens = Annotated[int | None, typer.Option(help="Tokens of an answer. Default: 96.", show_default=False)]
Batch = Annotated[str, typer.Option(help="Sessions at a time, or auto.", metavar="auto|N")]
Context = Annotated[
    int | None, typer.Option(help="Tokens each session has room for. Default: 4096.", show_default=False)
]
Quantize = Annotated[
    Quantization | None, typer.Option(help="What the weights are run as. Default: the profile's, else int4.")
]
WireCodec = Annotated[Codec | None, typer.Option("--codec", help="Type on the wire.", show_default=False)]
Keep = Annotated[
    Privacy,
    typer.Option("--privacy", help="What must stay on the source: first layers, both ends, or nothing."),
]
Plot = Annotated[Path | None, typer.Option(help="Draw it: .svg or .png.", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="Write the plan here, for `edgectl serve --plan`.", show_default=False)]
Cluster = Annotated[Path | None, typer.Option(help="The cluster.toml of --measure.", show_default=False)]


def plan(
    model: Model,
    *,
    profile: ProfileFile = None,
    testbed: Testbed = None,
    devices: Devices = None,
    links: Links = None,
    objective: Annotated[Objective, typer.Option(help="What is to be best.")] = "latency",
    source: Source = None,
    prompt: Prompt = None,
    tokens: Tokens = None,
    batch: Batch = "auto",
    context: Context = None,
    quantize: Quantize = None,
    block_size: BlockSize = None,
    codec: WireCodec = None,
    privacy: Keep = "source-first",
    replicas: Annotated[bool, typer.Option("--replicas", help="For throughput: also copies of the pipeline.")] = False,
    pareto: Annotated[bool, typer.Option("--pareto", help="Also list latency against throughput.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say why the plan is as it is.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Solve and cost it again in another way.")] = False,
    plot: Plot = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole answer as one line of JSON.")] = False,
    out: Out = None,
    measure: Annotated[bool, typer.Option("--measure", help="Run it on the cluster and compare.")] = False,
    cluster: Cluster = None,
) -> None:
    """Plan which layers run where, and say what to expect; exact, and willing to say: do not split."""
    from edgectl.plan_inputs import PlanOptions

    if plot is not None:
        from edgectl.plan_plot import check_suffix

        _as_usage(check_suffix, plot)
    options = PlanOptions(
        model=model,
        profile=profile,
        testbed=testbed,
        devices=devices,
        links=links,
        cluster=cluster,
        objective=objective,
        source=source,
        privacy=privacy,
        prompt=prompt,
        tokens=tokens,
        batch=_batch(batch),
        context=context,
        quantization=quantize,
        block_size=block_size,
        codec=codec,
        replicas=replicas,
        pareto=pareto,
    )
    _run(options, explain=explain, verify=verify, plot=plot, as_json=as_json, out=out, measure=measure)


def _run(
    options: PlanOptions,
    *,
    explain: bool,
    verify: bool,
    plot: Path | None,
    as_json: bool,
    out: Path | None,
    measure: bool,
) -> None:
    """Plan, write, show; whatever takes long comes after the plan is safe in its file."""
    from edgectl.output import emit_json, say, show, write_json
    from edgectl.planning import not_executed_yet
    from planner.plan_json import answer_as_json

    answer, title = _answer(options)
    refusal = not_executed_yet(answer.plan)
    if refusal is not None:
        say(f"edgectl serve refuses a plan of this kind: {refusal}")
    found: dict[str, Any] = answer_as_json(answer)
    texts: list[str] = []
    if explain:
        from planner.explain import explain_plan

        found["explanation"] = list(explain_plan(answer))
        texts.append("\n".join(found["explanation"]))
    report = None
    if verify:
        from planner.verify import verify_plan

        say("verifying: HiGHS solves it again, which may take much longer")
        report = verify_plan(answer)
        found["verified"] = report.as_json()
        texts.append(report.describe())
    if out is not None:
        write_json(out, found)
    if plot is not None:
        from edgectl.plan_plot import plot_plan

        plot_plan(answer, plot)
        say(f"wrote {plot}")
    if measure:
        from edgectl.plan_report import describe_measured, measured_as_json

        measured = _measured(options, answer)
        found["measured"] = measured_as_json(measured)
        texts.append(describe_measured(answer, measured))
    if as_json:
        emit_json(found)
    else:
        from edgectl.plan_report import describe_plan

        show("\n\n".join((describe_plan(answer, title), *texts)))
    if report is not None and not report.ok:
        from edgectl.failures import ExitCode
        from edgectl.output import CommandFailure

        raise CommandFailure(ExitCode.FAILURE, "--verify: " + "; ".join(report.differences))


def _answer(options: PlanOptions) -> tuple[Answer, str]:
    """The answer and where its numbers come from."""
    import os

    from edgectl.output import say
    from edgectl.plan_inputs import MeasureHere, resolve
    from planner.answer import make_plan

    def measure_here(*asked: Any) -> Any:
        from agent.log import configure
        from edgectl.this_machine import measure_this_machine

        configure("error", process="plan")
        say("no profile of this model: measuring this machine alone")
        return measure_this_machine(*asked)

    measuring: MeasureHere = measure_here
    inputs = _as_usage(resolve, options, os.environ, measuring)
    for sentence in inputs.said:
        say(sentence)
    return make_plan(inputs.request), inputs.title


def _measured(options: PlanOptions, answer: Answer) -> Any:
    import os

    from edgectl.config import find_cluster_file, load_config
    from edgectl.plan_measure import measure_plan

    config = load_config(find_cluster_file(options.cluster, os.environ), os.environ)
    work = answer.request.workload
    model = Path(options.model).expanduser()
    directory = str(model.parent) if model.is_file() else options.model
    return measure_plan(answer.plan, config, directory, prompt_tokens=work.prompt, tokens=work.tokens)


def _as_usage(call: Callable[..., _Result], *arguments: object) -> _Result:
    """What `call` returns; its ValueError is a wrong option."""
    try:
        return call(*arguments)
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from problem


def _batch(text: str) -> int | None:
    """None for auto. Raises BadParameter."""
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text[:9]) <= 4096:
        raise typer.BadParameter(f"{text!r} is not auto or a number from 1 to 4096", param_hint="--batch")
    return int(text)
