"""`edge-agent fleet rollout`, `rollback`, `pin` and `unpin`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from secrets import token_hex
from typing import Final

import msgspec
from msgspec.structs import replace

from agent.config import MqttConfig
from agent.contract.updates import Action, Desired
from agent.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, AgentError, UnavailableError
from agent.operator import rollout_files
from agent.operator.boards import Board, Fleet, desired_topic
from agent.operator.exchange import Exchange, gather
from agent.operator.fleet_rows import title
from agent.operator.rollout import (
    BAD,
    ENDED,
    RUNS_IT,
    Rollout,
    in_turn,
    plan_boards,
    undo_of,
)
from agent.operator.rollout_run import Drive
from agent.operator.rollout_show import print_outcome, print_plan, view
from agent.operator.shares import wave_ends
from agent.operator.show import print_json, say

NEVER: Final = 2.0  # a share that is never reached


@dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """The boards that are meant."""

    devices: Sequence[str] = ()
    groups: Sequence[str] = ()
    is_all: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What they are asked for."""

    action: Action = "run"
    name: str | None = None
    version: str | None = None
    engine: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How it is gone about."""

    mqtt: MqttConfig
    waves: Sequence[tuple[float, bool]] = ((100.0, True),)
    halt_on: float = NEVER
    wait_s: float = 1800.0
    boards_a_second: float = 20.0
    state: Path | None = None
    dry_run: bool = False
    as_json: bool = False


def run_rollout(how: How, which: Which, wish: Wish) -> int:
    """Ask boards for a model, wave by wave; 1 if it was halted."""
    return _begin(how, which, wish)


def _begin(
    how: How, which: Which, wish: Wish, *, before: Rollout | None = None, file: Path | None = None
) -> int:
    """Plan and drive; `before`, kept in `file`, is the rollout whose boards are meant."""
    fleet = Fleet(how.mqtt.prefix)
    with Exchange(how.mqtt, fleet.filters()) as exchange:
        gather(exchange, fleet.note)
        if before is not None:
            which = Which(devices=given_to(before, fleet))
        rollout = plan(fleet, how, which, wish)
        rollout.groups = list(which.groups) if before is None else _groups_given(before, fleet)
        if how.dry_run:
            return _show_plan(rollout, fleet, how)
        if not rollout.boards and not _is_order_enough(rollout):
            raise UnavailableError(_nobody(rollout, which, fleet.prefix))
        with rollout_files.held(rollout_files.state_folder(how.state), rollout.id) as own_file:
            if before is not None and file is not None and before.state not in ENDED:
                # Nobody is to go on with what is taken back here.
                before.state, before.why, before.ended_at = "halted", rollout.id, time.time()
                rollout_files.save(file, before)
            return _drive(rollout, exchange, fleet, how, own_file)


def run_resume(how: How, rollout_id: str) -> int:
    """Go on with a rollout that was interrupted."""
    folder = rollout_files.state_folder(how.state)
    found = rollout_files.choose_unfinished(folder, rollout_id)
    with rollout_files.held(folder, found.id) as file:
        rollout = rollout_files.load(file)
        if rollout.state in ENDED:
            raise AgentError(f"{rollout.id} is {rollout.state} already; nothing was done")
        _require_same_place(rollout, how)
        fleet = Fleet(how.mqtt.prefix)
        with Exchange(how.mqtt, fleet.filters()) as exchange:
            gather(exchange, fleet.note)
            if how.dry_run:
                return _show_plan(rollout, fleet, how)
            say(f"going on with {rollout.id}: {rollout.title}")
            return _drive(rollout, exchange, fleet, how, file)


def _require_same_place(rollout: Rollout, how: How) -> None:
    if (rollout.broker, rollout.prefix) != (how.mqtt.url, how.mqtt.prefix):
        raise AgentError(
            f"{rollout.id} was begun at {rollout.broker} below {rollout.prefix}/, and this is"
            f" {how.mqtt.url} below {how.mqtt.prefix}/"
        )


def run_rollback(how: How, which: Which, wish: Wish, rollout_id: str) -> int:
    """Ask boards for what they ran before, all at once; `rollout_id`: those it was given to."""
    if not rollout_id:
        return _begin(how, which, wish)
    folder = rollout_files.state_folder(how.state)
    rollout_files.find(folder, rollout_id)  # or there is no folder to hold
    with rollout_files.held(folder, rollout_id) as file:
        before = rollout_files.load(file)
        _require_same_place(before, how)
        is_named = wish.action == "rollback"
        if is_named and before.action != "run":
            raise AgentError(
                f"{rollout_id} is a rollback itself: ask for the model that is to run, by"
                " edge-agent fleet rollout"
            )
        # One step back from this model alone: a board whose order was taken back when it was
        # halted is there already, and one more step would bring it to what is to be left.
        wish = Wish(
            action=wish.action,
            name=before.name if is_named else None,
            version=before.version if is_named else None,
            engine=before.engine,
        )
        return _begin(how, which, wish, before=before, file=file)


def given_to(rollout: Rollout, fleet: Fleet) -> list[str]:
    """Return the boards that a rollout came to: by name, or with a group that they joined later.

    Raises:
        UnavailableError: there are none.
    """
    given = {order.device for order in rollout.boards if order.result not in ("planned", "failed")}
    given |= {device for device in rollout.away if rollout.state == "finished"}
    for board in fleet.boards.values():
        reported, desired = board.reported.get(rollout.engine), board.desired
        if rollout.id in (reported and reported.deployment_id, desired and desired.deployment_id):
            given.add(board.device)
    going = sorted(device for device in given if not _has_left(fleet, device, rollout))
    if not going:
        raise UnavailableError(f"{rollout.id}: no board runs it for all that is known")
    for device in going:
        fleet.boards.setdefault(device, Board(device))
    return going


def _has_left(fleet: Fleet, device: str, rollout: Rollout) -> bool:
    """Return whether a board was asked for something else since, and runs something else."""
    newer = fleet.newer_order(device, rollout.engine, rollout.counter)
    return newer is not None and title(fleet.boards[device].model(rollout.engine)) != rollout.title


def _groups_given(rollout: Rollout, fleet: Fleet) -> list[str]:
    """Return the groups whose order is that rollout's."""
    asked = {group: desired.deployment_id for group, desired in fleet.groups.items()}
    return [group for group in rollout.groups if asked.get(group) == rollout.id]


def plan(fleet: Fleet, how: How, which: Which, wish: Wish) -> Rollout:
    """Choose boards and give them their waves.

    Raises:
        UnavailableError: a board that was named never said a word.
    """
    now = time.time()
    started = datetime.fromtimestamp(now, timezone.utc)
    rollout_id = f"{wish.action}-{started:%Y%m%dT%H%M%S}-{token_hex(3)}"
    chosen = _choose(fleet, which)
    skipped = {board.device: why for board in chosen if (why := _why_not(board, which, wish))}
    going = [board for board in chosen if board.device not in skipped]
    away = sorted(board.device for board in going if not board.is_online)
    there = in_turn([board for board in going if board.is_online], rollout_id)
    ends = wave_ends(how.waves, len(there))
    left = len(going) - max(wave_ends(how.waves, len(going)), default=0)
    if left:  # those that are away are behind all others, and so behind the last wave
        left, away = len(going) - max(ends, default=0), []
    counters = [board.desired.counter for board in chosen if board.desired is not None]
    counters += [desired.counter for desired in fleet.groups.values()]
    return Rollout(
        id=rollout_id,
        counter=max([int(now * 1000), *(counter + 1 for counter in counters)]),
        action=wish.action,
        name=wish.name,
        version=wish.version,
        engine=wish.engine,
        groups=[],
        broker=how.mqtt.url,
        prefix=how.mqtt.prefix,
        halt_on=how.halt_on,
        wait_s=how.wait_s,
        started_at=now,
        boards=plan_boards(there, ends, wish.engine, rollout_id),
        away=away,
        skipped=skipped,
        left=left,
    )


def _choose(fleet: Fleet, which: Which) -> list[Board]:
    unknown = [device for device in which.devices if device not in fleet.boards]
    if unknown:
        raise UnavailableError(
            f"no board {', '.join(unknown[:10])} ever said a word below {fleet.prefix}/"
        )
    return [
        board
        for board in sorted(fleet.boards.values(), key=lambda board: board.device)
        if which.is_all or board.device in which.devices or set(board.groups) & set(which.groups)
    ]


def _why_not(board: Board, which: Which, wish: Wish) -> str | None:
    """Return why a board is not asked."""
    if not board.reported:
        return "never reported on a model; [update] may be off there"
    if not board.has_engine(wish.engine):
        return f"has no model {wish.engine!r} in [models]"
    if board.is_pinned(wish.engine) and board.device not in which.devices:
        return "is pinned; name it by --devices, or unpin it"
    reported, model = board.reported.get(wish.engine), board.model(wish.engine)
    is_settled = reported is None or reported.phase in ("idle", "committed")
    if wish.action == "run" and is_settled and title(model) == f"{wish.name}@{wish.version}":
        return RUNS_IT
    return None


def _drive(rollout: Rollout, exchange: Exchange, fleet: Fleet, how: How, file: Path) -> int:
    rollout_files.save(file, rollout)
    try:
        with view() as shown:
            drive = Drive(
                rollout,
                exchange,
                fleet,
                save=lambda rollout: rollout_files.save(file, rollout),
                view=shown,
                boards_a_second=how.boards_a_second,
            )
            drive.run()
    except KeyboardInterrupt:
        rollout_files.save(file, rollout)
        say(
            "boards that were asked go on by themselves; go on with the rest by"
            f" edge-agent fleet rollout --resume {rollout.id}"
        )
        return EXIT_INTERRUPTED
    if how.as_json:
        print_json(rollout)
    else:
        print_outcome(rollout)
    # What boards may refuse of a rollout has a limit; of a rollback every one counts.
    is_well = rollout.action == "run" or not any(order.result in BAD for order in rollout.boards)
    return EXIT_OK if rollout.state == "finished" and is_well else EXIT_FAILURE


def _show_plan(rollout: Rollout, fleet: Fleet, how: How) -> int:
    if how.as_json:
        print_json(rollout)
    else:
        print_plan(rollout, {board.device: board.kind for board in fleet.boards.values()})
    return EXIT_OK


def _is_order_enough(rollout: Rollout) -> bool:
    """Return whether orders may be given though no board is there to try them.

    A way back needs no trial, and what some board runs already has had it.
    """
    if rollout.action != "run":
        return bool(rollout.away)
    return RUNS_IT in rollout.skipped.values()


def _nobody(rollout: Rollout, which: Which, prefix: str) -> str:
    reasons = [f"{device} {why}" for device, why in sorted(rollout.skipped.items())[:3]]
    if rollout.away or rollout.left:
        reasons.append(f"{len(rollout.away) or rollout.left} are offline")
    if reasons:
        return f"no board to ask: {'; '.join(reasons)}"
    where = f" is in {', '.join(which.groups)}" if which.groups else ""
    return f"no board below {prefix}/{where or ' ever said a word'}"


def run_pin(how: How, which: Which, wish: Wish, *, pinned: bool) -> int:
    """Keep boards on a model, by default the one they run, whatever their groups are asked for."""
    fleet = Fleet(how.mqtt.prefix)
    with Exchange(how.mqtt, fleet.filters()) as exchange:
        gather(exchange, fleet.note)
        orders = [
            (board, _pin(board, fleet, wish, pinned=pinned)) for board in _choose(fleet, which)
        ]
        if not how.dry_run:
            for board, desired in orders:
                topic = desired_topic(fleet.prefix, board.device)
                exchange.publish(topic, msgspec.json.encode(desired))
            exchange.flush()
    if how.as_json:
        print_json({board.device: desired for board, desired in orders})
        return EXIT_OK
    verb = f"{'would be ' * how.dry_run}{'pinned' if pinned else 'unpinned'}"
    for board, desired in orders:
        model = f"{desired.name}@{desired.version}" if desired.name else "the factory's model"
        print(f"{board.device}: {verb}, {model}")
    return EXIT_OK


def _pin(board: Board, fleet: Fleet, wish: Wish, *, pinned: bool) -> Desired:
    stamp = datetime.now(timezone.utc)
    order_id = f"{'pin' if pinned else 'unpin'}-{stamp:%Y%m%dT%H%M%S}-{token_hex(3)}"
    known = [fleet.groups[group].counter for group in board.groups if group in fleet.groups]
    known += [board.desired.counter] if board.desired else []
    counter = max([int(stamp.timestamp() * 1000), *(one + 1 for one in known)])
    if wish.name is not None:
        return Desired(
            deployment_id=order_id, counter=counter, engine=wish.engine,
            name=wish.name, version=wish.version, pinned=pinned,
        )  # fmt: skip
    order = undo_of(board, wish.engine, order_id)
    if order is None:
        reported, model = board.reported.get(wish.engine), board.model(wish.engine)
        is_trying = reported is not None and reported.source == "candidate"
        does = f"is trying {title(model)}" if is_trying else "did not say what it runs"
        raise UnavailableError(f"{board.device} {does}; name a model")
    return replace(order, deployment_id=order_id, counter=counter, pinned=pinned)
