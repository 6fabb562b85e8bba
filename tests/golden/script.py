"""Scenario scripts: commands to a ring of stages, `----`, and what they must print. The form is that of raft's tests.

A script is a list of blocks, one blank line between them. Lines that start with # are comments. The commands are the
methods of `Scene`, with dashes for underscores: `deliver a b`, `open-session s1 prompt=1,2,3 max=5`.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.effects import Connect, Disconnect, Effect, Emit, Job, Notify, Reply, Send
from agent.wire import codec
from agent.wire.codec import HANDING, CodecId, Frame, FrameKind
from agent.wire.messages import (
    Failed,
    FromSource,
    MicroBatchClosed,
    MicroBatchOpened,
    Opening,
    OpenSession,
    Sampling,
    SessionEnded,
    SessionFailed,
    SessionMoved,
    SplitKept,
    SplitMoved,
    TokenEvent,
)
from planner.types import LayerRange
from tests.fakes.ring import Action, Performed, Ran, Ring

SEPARATOR = "----"


class ScriptError(Exception):
    """The script itself is wrong: names the line."""


class Scene:
    """One ring and the commands a script gives it; every command returns the lines it prints."""

    def __init__(self) -> None:
        self.ring = Ring(1, pings=False)
        self.opened: dict[str, OpenSession] = {}

    def cluster(self, *, layers: str, slots: str = "4", context: str = "64") -> list[str]:
        """Start over with a model of so many layers."""
        self.ring = Ring(int(layers), slots=int(slots), context=int(context), pings=False)
        return []

    def add_device(self, name: str, start: str, stop: str, *, loaded: str = "yes", resident: str = "") -> list[str]:
        """`resident=0,4` where it has more layers than it runs."""
        has = LayerRange(*_numbers(resident)) if resident else None
        self.ring.add_device(name, LayerRange(int(start), int(stop)), loaded=loaded == "yes", resident=has)
        return []

    def cut_anywhere(self, **options: str) -> list[str]:
        """Six layers on a and b, cut at 2 and, if asked, at 1 to 4; every connection up; prints nothing."""
        self.cluster(layers="6")
        self.add_device("a", "0", "2", resident="0,4")
        self.add_device("b", "2", "6", resident="1,6")
        self.open_micro_batch("1", route="a,b", splits="1,2,3,4", **options)
        self.settle()
        return []

    def move_split(self, split: str, *, at: str = "a") -> list[str]:
        self.ring.move_split(at, 1, int(split))
        return self.news()

    def three_stages(self, **options: str) -> list[str]:
        """Layers [0, 2), [2, 4) and [4, 6) on a, b and c, micro-batch 1 open, every connection up; prints nothing."""
        self.cluster(layers="6")
        for index, name in enumerate("abc"):
            self.add_device(name, str(2 * index), str(2 * index + 2))
        return self.reopen(**options)

    def reopen(self, **options: str) -> list[str]:
        """Open micro-batch 1 on a, b and c and let every connection come up; prints nothing."""
        self.open_micro_batch("1", route="a,b,c", **options)
        self.settle()
        return []

    def open_micro_batch(
        self,
        number: str,
        *,
        route: str,
        epoch: str = "1",
        rows: str = "1",
        chunk: str = "4",
        wire: str = "fp16",
        splits: str = "",
    ) -> list[str]:
        self.ring.open_micro_batch(
            int(number),
            int(epoch),
            route.split(","),
            rows=int(rows),
            chunk=int(chunk),
            wire=wire,  # type: ignore[arg-type]
            split_points=_numbers(splits),
        )
        return self.news()

    def close_micro_batch(self, number: str) -> list[str]:
        self.ring.close_micro_batch(int(number))
        return self.news()

    def open_session(
        self,
        name: str,
        *,
        prompt: str,
        at: str = "a",
        max: str = "4",
        micro_batch: str = "1",
        emitted: str = "",
        stop: str = "",
    ) -> list[str]:
        """Open a session at its source with greedy sampling; a prompt may be a range like 1..9."""
        opened = OpenSession(
            name,
            int(micro_batch),
            _numbers(prompt),
            int(max),
            Sampling(temperature=0.0),
            stop_ids=_numbers(stop),
            emitted=_numbers(emitted),
        )
        self.opened[name] = opened
        self.ring.open_session(at, opened)
        return self.news()

    def cancel(self, name: str, *, at: str = "a") -> list[str]:
        self.ring.cancel(at, name)
        return self.news()

    def resume(self, name: str, index: str, *, at: str = "a") -> list[str]:
        self.ring.resume(at, name, int(index))
        return self.news()

    def run(self, *names: str) -> list[str]:
        """The next job of each of these devices."""
        for name in names:
            self._perform(Action("run", name))
        return self.news()

    def deliver(self, device: str, peer: str) -> list[str]:
        """The first frame under way from a device to the next."""
        self._perform(Action("frame", device, peer))
        return self.news()

    def deliver_reply(self, device: str, peer: str) -> list[str]:
        """The first refusal on its way back over the connection of `device` to `peer`."""
        self._perform(Action("reply", device, peer))
        return self.news()

    def deliver_as(self, stranger: str, device: str, peer: str) -> list[str]:
        """The first frame under way arrives again over a connection of another device's."""
        parts = self.ring.links[device, peer].frames[0]
        self.ring.hand_over(stranger, peer, list(parts))
        return self.news()

    def settle(self, *, quiet: str = "no") -> list[str]:
        """Everything that can happen; `quiet=yes` prints only what the coordinator is told."""
        self.ring.settle()
        return self.news(quiet=quiet == "yes")

    def drop_connection(self, device: str, peer: str) -> list[str]:
        self.ring.drop(device, peer)
        return []

    def reconnect(self, device: str, peer: str) -> list[str]:
        self.ring.reconnect(device, peer)
        self._perform(Action("connect", device, peer))
        return self.news()

    def lose_frame(self, device: str, peer: str) -> list[str]:
        return [f"lost: {frame_words(self._first(device, peer, self.ring.lose_frame))}"]

    def duplicate_frame(self, device: str, peer: str) -> list[str]:
        return [f"twice: {frame_words(self._first(device, peer, self.ring.duplicate_frame))}"]

    def corrupt_frame(self, device: str, peer: str) -> list[str]:
        return [f"corrupted: {frame_words(self._first(device, peer, self.ring.corrupt_frame))}"]

    def edit_frame(self, device: str, peer: str, **fields: str) -> list[str]:
        """Change number fields of the first frame under way; `generation` and `position` are those of its first row."""
        changes: dict[str, object] = {name: bool(int(v)) if name == "sample" else int(v) for name, v in fields.items()}
        frame = self.ring.first_frame(device, peer)
        first, *others = frame.rows
        row = {name: changes.pop(name) for name in ("row", "generation", "position") if name in changes}
        first = first._replace(**row)  # type: ignore[arg-type]
        openings = tuple(Opening(first.row, first.generation, opening.sampling) for opening in frame.openings)
        self.ring.edit_frame(device, peer, rows=(first, *others), openings=openings, **changes)
        return [f"edited: {frame_words(self.ring.first_frame(device, peer))}"]

    def restart_device(self, name: str, *, loaded: str = "yes") -> list[str]:
        self.ring.restart(name, loaded=loaded == "yes")
        return self.news()

    def tick(self, seconds: str) -> list[str]:
        self.ring.tick(float(seconds.removesuffix("s")))
        return self.news()

    def coordinator(self, state: str) -> list[str]:
        """`coordinator silent` and `coordinator back`."""
        self.ring.coordinator_is_silent = state == "silent"
        return []

    def status(self) -> list[str]:
        """Counters of every device, and the links with what is under way on them."""
        lines = []
        for name, member in self.ring.members.items():
            counts = ", ".join(f"{key} {count}" for key, count in sorted(self.ring.counters(name).items()))
            waiting = "a job" if member.stage.has_job(self.ring.now) else "no job"
            lines.append(f"{name}: {waiting} waiting; {counts or 'nothing counted'}")
        for (device, peer), link in sorted(self.ring.links.items()):
            frames = ", ".join(frame_words(frame, brief=True) for frame in self.ring.frames_under_way(device, peer))
            lines.append(f"{device} → {peer}: {link.state}; under way: {frames or 'nothing'}")
        return lines

    def compare(self, name: str) -> list[str]:
        """A session's tokens against the oracle's."""
        opened = self.opened[name]
        tokens = list(opened.emitted) + self.ring.tokens(name, len(opened.emitted))
        expected = self.ring.expected(opened)
        verdict = "all" if tokens == expected else "a part"
        same = tokens == expected[: len(tokens)]
        return [f"{name}: {len(tokens)} tokens, {verdict if same else 'NOT THOSE'} of the oracle's"]

    def news(self, *, quiet: bool = False) -> list[str]:
        """What the stages did since the last call."""
        performed, self.ring.journal = self.ring.journal, []
        return [effect_words(entry) for entry in performed if not quiet or isinstance(entry.effect, (Emit, Notify))]

    def _perform(self, action: Action) -> None:
        if action not in self.ring.actions():
            possible = "; ".join(" ".join(filter(None, each)) for each in self.ring.actions())
            raise ScriptError(f"{' '.join(filter(None, action))}: not possible now; possible: {possible or 'nothing'}")
        self.ring.perform(action)

    def _first(self, device: str, peer: str, fault: Callable[[str, str], None]) -> Frame:
        frame = self.ring.first_frame(device, peer)
        fault(device, peer)
        return frame


def _numbers(text: str) -> tuple[int, ...]:
    first, dots, last = text.partition("..")
    if dots:
        return tuple(range(int(first), int(last) + 1))
    return tuple(int(number) for number in text.split(",") if number)


# --- words ---


def effect_words(performed: Performed) -> str:
    device, effect, left = performed
    return f"{device} {_effect(effect)}{'' if left else ' (no connection)'}"


def _effect(effect: Effect | Ran) -> str:
    match effect:
        case Send(peer, frame):
            return f"→ {peer}: {frame_words(frame)}"
        case Reply(_, frame):
            return f"replies {frame_words(frame)}"
        case Ran(job):
            return f"runs {job_words(job)}"
        case Emit(message):
            return _message(message)
        case Notify(MicroBatchOpened(number, epoch)):
            return f"opened micro-batch {number}, epoch {epoch}"
        case Notify(MicroBatchClosed(number)):
            return f"closed micro-batch {number}"
        case Notify(Failed(request, code, detail)):
            return f"failed {request}: {code}: {detail}"
        case Connect(peer, endpoint):
            return f"connects to {peer} at {endpoint}"
        case Disconnect(peer):
            return f"disconnects from {peer}"
    return repr(effect)


def _message(message: FromSource) -> str:
    match message:
        case TokenEvent(session, index, token):
            return f"emits {session}[{index}] = {token}"
        case SessionEnded(session, reason, tokens):
            return f"ends {session}: {reason} after {tokens}"
        case SessionFailed(session, code, detail):
            return f"fails {session}: {code}: {detail}"
        case SessionMoved(session, position, split):
            return f"cuts {session} at layer {split} from position {position} on"
        case SplitMoved(_, split, size):
            return f"moved the split to {split}, {size} bytes"
        case SplitKept(_, split, code, detail):
            return f"did not move the split to {split}: {code}: {detail}"
    return repr(message)


def frame_words(frame: Frame, *, brief: bool = False) -> str:
    words = f"{frame.kind.name.lower()} {frame.step}"
    if frame.kind is FrameKind.REFUSAL:
        refused = codec.decode_refusal(frame.payload)
        return f"{words} epoch {frame.epoch}: {refused}"
    if brief:
        return words
    rows = " ".join(f"{ref.row}.{ref.generation}@{ref.position}" for ref in frame.rows)
    words += f" [{rows}]"
    if frame.kind is FrameKind.ANSWER:
        tokens = ", ".join(str(answer.token) for answer in codec.decode_answers(frame.payload))
        return f"{words} = {tokens or 'nothing sampled'}"
    if frame.kind in HANDING:
        if frame.kind is FrameKind.HANDED and frame.codec is CodecId.NONE:
            return words + (f" refused: {codec.decode_refusal(frame.payload)}" if frame.payload else " done")
        return words + f" +{frame.shape[1]}, layers from {frame.start_layer} on, {len(frame.payload)} bytes"
    return words + f" +{frame.shape[1]}{' opens' * bool(frame.openings)}, answered {frame.answered}"


def job_words(job: Job) -> str:
    if job.hands is not None:
        return f"{job.kind.name.lower()} {job.step}: {job.hands.value} layers {job.layers}"
    positions = ",".join(map(str, job.positions))
    idle = len(job.positions) - len(job.active)
    sampled = f", samples {len(job.choosers)}" if job.choosers else ""
    return (
        f"{job.kind.name.lower()} {job.step}: layers {job.layers}, slot {job.first_slot} on at {positions}"
        f" +{job.shape[1]}{f', {idle} idle' if idle else ''}{sampled}"
    )


# --- scripts ---


def run_script(text: str) -> str:
    """The script with what its commands print now in place of what it says they print."""
    scene = Scene()
    blocks = []
    for block in text.strip("\n").split("\n\n"):
        commands = block.split(f"\n{SEPARATOR}")[0].splitlines()
        if all(line.startswith("#") for line in commands):
            blocks.append("\n".join(commands))
            continue
        printed = [line for command in commands if not command.startswith("#") for line in obey(scene, command)]
        blocks.append("\n".join([*commands, SEPARATOR, *(printed or ["ok"])]))
    return "\n\n".join(blocks) + "\n"


def obey(scene: Scene, command: str) -> list[str]:
    name, *words = command.split()
    handler = getattr(scene, name.replace("-", "_"), None)
    if handler is None or name.startswith("_"):
        raise ScriptError(f"no such command: {command}")
    options = dict(word.split("=", 1) for word in words if "=" in word)
    arguments = [word for word in words if "=" not in word]
    try:
        lines: list[str] = handler(*arguments, **{key.replace("-", "_"): value for key, value in options.items()})
    except (TypeError, KeyError, IndexError, ScriptError) as problem:
        raise ScriptError(f"{command}: {problem}") from problem
    return lines
