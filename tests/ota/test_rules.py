"""Every row of the table, and every row that is not in it."""

from typing import get_args

import pytest
from msgspec.structs import replace
from ota.update_world import model

from agent.contract.updates import Desired, Phase
from agent.ota import rules
from agent.ota.refusal import RefusalError
from agent.ota.state import BundleRef, Deployment, EngineState, Order, ReleaseFloor, State
from agent.ota.steps import Target

OLD, NEW = model("1").ref, model("2").ref
ROWS = [(phase, event) for phase, row in rules.TABLE.items() for event in row]
EVENTS = get_args(rules.Event)


def order(counter=5, *, scope="device", **fields) -> Order:
    fields = {"name": "ssd", "version": "2", **fields}
    return Order(desired=Desired(deployment_id="d", counter=counter, **fields), scope=scope)


def state_in(phase, *, active=OLD, previous=None, deployment=None, **fields) -> State:
    known = {"order": order(), "candidate": NEW, "is_resolved": True}
    known |= {"attempts": 1, "transitions": 4}
    made = Deployment(phase=phase, **known | (deployment or {}))
    engine = EngineState(active=active, previous=previous)
    return State(engines={"": engine}, deployment=None if phase == "idle" else made, **fields)


@pytest.mark.parametrize(("phase", "event"), ROWS)
def test_each_row_leads_where_it_says_and_is_counted(phase, event):
    before = state_in(phase)
    if event == "ordered":
        newer = order(6, name="other")
        after = rules.take_up(before, newer)
        assert after.deployment == Deployment(order=newer)
        assert after.orders[""] == newer
        assert after.counters[""] == 6
        assert after.engines == before.engines
        return
    after = rules.follow(before, event, code="E_NET", message="why")
    deployment = after.deployment
    assert deployment.phase == rules.TABLE[phase][event]
    assert deployment.transitions == before.deployment.transitions + 1
    assert (deployment.code, deployment.message) == ("E_NET", "why")
    if event != "passed":
        assert after.engine("").active == before.engine("").active


@pytest.mark.parametrize(
    ("phase", "event"),
    [(phase, event) for phase in rules.TABLE for event in EVENTS if (phase, event) not in ROWS],
)
def test_what_is_in_no_row_does_not_happen(phase, event):
    state = state_in(phase)
    do = (lambda: rules.take_up(state, order(6))) if event == "ordered" else None
    with pytest.raises((KeyError, ValueError)):
        do() if do is not None else rules.follow(state, event)


def test_the_table_has_all_phases_and_every_way_ends():
    assert set(rules.TABLE) == set(get_args(Phase))
    assert {event for _, event in ROWS} == set(EVENTS)
    leads_to_end = set(rules.ENDS)
    for _ in rules.TABLE:
        leads_to_end |= {
            phase for phase, row in rules.TABLE.items() if leads_to_end & set(row.values())
        }
    assert leads_to_end == set(rules.TABLE)
    reached = {"idle"}
    for _ in rules.TABLE:
        reached |= {after for phase in reached for after in rules.TABLE[phase].values()}
    assert reached == set(rules.TABLE)
    # Nothing but an order or crashes leads on from an end, and no order leads out of a trial.
    assert {event for phase, event in ROWS if phase in rules.ENDS} == {"ordered", "outlived"}
    assert not any("ordered" in rules.TABLE[phase] for phase in rules.ON_TRIAL)


@pytest.mark.parametrize("phase", [phase for phase in rules.TABLE if phase not in rules.ENDS])
def test_no_order_goes_on_for_ever(phase):
    events = [event for event in rules.TABLE[phase] if event != "ordered"]
    going_on = [event for event in events if rules.TABLE[phase][event] not in rules.ENDS]
    tired = state_in(phase, deployment={"transitions": rules.MOST_TRANSITIONS})
    for event in going_on:
        after = rules.follow(tired, event).deployment
        assert after.phase == ("rolled_back" if phase in rules.ON_TRIAL else "refused")
        assert after.code == "E_LOOP"
        assert after.transitions == rules.MOST_TRANSITIONS + 1


def test_trial_is_counted_before_it_begins_and_as_often_as_it_begins():
    shadow = state_in("shadow", deployment={"attempts": 2})
    trial = rules.follow(shadow, "done")
    assert (trial.deployment.phase, trial.deployment.attempts) == ("trial", 1)
    probation = rules.follow(trial, "done")
    assert probation.deployment.attempts == 1
    again = rules.crashed(probation, "E_CRASH", "SIGSEGV")
    assert (again.deployment.phase, again.deployment.attempts) == ("trial", 2)
    third = rules.resume(again)
    assert (third.deployment.phase, third.deployment.attempts) == ("trial", 3)
    over = rules.crashed(third, "E_HANG", "stuck")
    assert (over.deployment.phase, over.deployment.code) == ("rolled_back", "E_HANG")
    assert "given 3 workers" in over.deployment.message
    assert [one.sha256 for one in over.engine("").denied] == [NEW.sha256]


def test_a_step_is_begun_so_often_and_no_more():
    state = state_in("selftest", deployment={"attempts": 0})
    for attempt in (1, 2):
        state = rules.begin(state)
        assert (state.deployment.phase, state.deployment.attempts) == ("selftest", attempt)
    over = rules.begin(state, ("E_SELFTEST", "it was killed"))
    assert (over.deployment.phase, over.deployment.code) == ("refused", "E_SELFTEST")
    assert "tried 2 times: it was killed" in over.deployment.message
    assert rules.begin(state).deployment.code == "E_LOOP"


@pytest.mark.parametrize("phase", sorted(rules.TABLE))
def test_resume_repeats_what_was_under_way_and_leaves_ends_alone(phase):
    before = state_in(phase)
    after = rules.resume(before)
    if phase in rules.ENDS:
        assert after is before
    elif phase in rules.ON_TRIAL:
        assert (after.deployment.phase, after.deployment.attempts) == ("trial", 2)
    else:
        assert after.deployment == replace(before.deployment, transitions=5)
    endless = state_in(phase, deployment={"transitions": 32})
    if phase not in rules.ENDS:
        assert rules.resume(endless).deployment.code == "E_LOOP"


def test_an_orderly_stop_costs_no_try():
    trial = state_in("probation", deployment={"attempts": 3})
    resumed = rules.resume(rules.stop(trial))
    assert (resumed.deployment.phase, resumed.deployment.attempts) == ("trial", 3)
    again = rules.begin(rules.resume(rules.stop(state_in("shadow", deployment={"attempts": 2}))))
    assert (again.deployment.phase, again.deployment.attempts) == ("shadow", 2)
    for phase in rules.ENDS:
        assert rules.stop(state_in(phase)) == state_in(phase)


def test_commit_is_one_state_with_models_and_floors():
    raised = {"ssd": ReleaseFloor(release_counter=9, security_floor=1)}
    candidate = replace(NEW, release_counter=7, security_floor=3)
    before = state_in("probation", releases=raised, deployment={"candidate": candidate})
    after = rules.follow(before, "passed")
    assert after.engine("") == EngineState(active=candidate, previous=OLD)
    assert after.releases == {"ssd": ReleaseFloor(release_counter=9, security_floor=3)}


@pytest.mark.parametrize(
    ("action", "candidate", "previous"),
    [("run", OLD, None), ("rollback", NEW, None), ("factory", None, None)],
)
def test_what_is_one_step_back_after_a_commit(action, candidate, previous):
    # The same once more; and after a way back, what was left is nothing to fall back to.
    fields = {"candidate": candidate, "order": order(action=action)}
    after = rules.follow(state_in("probation", deployment=fields), "passed")
    assert after.engine("") == EngineState(active=candidate, previous=previous)


def decided(action, *, releases=None, **fields):
    engine = {name: fields.pop(name, None) for name in ("active", "previous")}
    state = state_in("accepted", deployment={"order": order(action=action, **fields)}, **engine)
    return rules.decide(replace(state, releases=releases or {})).deployment


def test_ways_of_an_order():
    assert decided("run", active=OLD).phase == "metadata"
    back = decided("rollback", active=NEW, previous=OLD, name=None, version=None)
    assert (back.phase, back.candidate) == ("verify", OLD)
    # An operator may name what is to be left: who does not run it, stays.
    assert decided("rollback", active=NEW, previous=OLD, version="2").phase == "verify"
    stays = decided("rollback", active=NEW, previous=OLD, version="3")
    assert (stays.phase, stays.message) == ("committed", "does not run ssd@3")
    factory = decided("rollback", active=NEW, name=None, version=None)
    assert (factory.phase, factory.is_resolved) == ("trial", True)
    assert decided("factory", active=NEW, previous=OLD).phase == "trial"
    assert decided("factory").phase == "committed"
    assert decided("rollback", name=None, version=None).phase == "committed"


def test_a_way_back_ends_at_the_security_floor():
    low = {"ssd": ReleaseFloor(release_counter=17, security_floor=15)}
    at_16, at_14 = (replace(OLD, release_counter=number) for number in (16, 14))
    fields = {"active": NEW, "name": None, "version": None, "releases": low}
    assert decided("rollback", previous=at_16, **fields).phase == "verify"
    below = decided("rollback", previous=at_14, **fields)
    assert (below.phase, below.code) == ("refused", "E_ROLLBACK")
    # Nor do crashes lead below it: then the factory's model runs.
    state = state_in("committed", active=NEW, previous=at_14, deployment={"candidate": NEW})
    fallen = rules.fall_back(replace(state, releases=low), "", "crashed")
    assert fallen.engine("").active is None


def test_fall_back_is_one_step_and_ends_at_the_factory():
    state = state_in("committed", active=NEW, previous=OLD)
    once = rules.fall_back(state, "", "crashed")
    assert once.engine("") == EngineState(active=OLD, denied=once.engine("").denied)
    assert (once.deployment.phase, once.deployment.code) == ("rolled_back", "E_CRASH")
    assert once.engine("").denied[0].sha256 == NEW.sha256
    twice = rules.fall_back(once, "", "crashed")
    assert twice.engine("").active is None
    assert twice.deployment == once.deployment
    assert rules.fall_back(twice, "", "crashed") is twice


def recalls(deployment_order, other, **fields):
    return rules.is_recall(Deployment(order=deployment_order, candidate=NEW), order(**other))


def test_what_calls_a_candidate_back():
    back = {"action": "rollback"}
    assert recalls(order(), back | {"name": None, "version": None})
    assert recalls(order(), back)
    assert recalls(order(), {"action": "factory"})
    assert not recalls(order(), {"version": "9"})
    assert not recalls(order(), back | {"version": "9"})
    assert not recalls(order(), back | {"engine": "second"})
    # One way back is not ended by another, which would lead to what both wanted to leave.
    assert not recalls(order(action="rollback"), back)
    assert recalls(order(action="rollback"), {"action": "factory"})
    assert not recalls(order(action="factory"), {"action": "factory"})


def test_a_recalled_candidate_is_not_denied():
    newer = order(6, action="rollback", name=None, version=None)
    ended, taken = rules.recall(state_in("probation"), newer)
    assert (ended.deployment.phase, ended.deployment.code) == ("rolled_back", "E_RECALLED")
    assert ended.engine("").denied == ()
    assert (taken.deployment.order, taken.deployment.phase) == (newer, "committed")
    _, taken = rules.recall(state_in("trial"), order(6, action="factory"))
    assert taken.deployment.phase == "accepted"


def refusal_of(state, ref: BundleRef, **fields):
    from agent.ota.admission import check_target

    target = Target(ref=ref, size=1, **fields)
    try:
        check_target(state, target, board="rpi-4", agent_version="0.3.0")
    except RefusalError as refusal:
        return refusal.code
    return None


def test_what_is_refused_before_a_byte_is_fetched():
    state = state_in("metadata", previous=replace(NEW, version="1.5", release_counter=1))
    floors = {"ssd": ReleaseFloor(release_counter=17, security_floor=2)}
    assert refusal_of(state, NEW) is None
    assert refusal_of(state, replace(NEW, name="other")) == "E_COMPAT"
    assert refusal_of(state, replace(NEW, version="3")) == "E_COMPAT"
    assert refusal_of(state, NEW, boards=("rpi-*",)) is None
    assert refusal_of(state, NEW, boards=("jetson-*",)) == "E_COMPAT"
    assert refusal_of(state, NEW, min_agent="0.3") is None
    assert refusal_of(state, NEW, min_agent="0.10") == "E_COMPAT"
    low = replace(state, releases=floors)
    assert refusal_of(low, NEW) is None
    assert refusal_of(low, replace(NEW, release_counter=1)) == "E_ROLLBACK"
    # Release counters of other models are no measure.
    other = replace(state, releases={"other": floors["ssd"]})
    assert refusal_of(other, replace(NEW, release_counter=1)) is None


def test_a_known_version_with_other_content_is_a_conflict():
    known = replace(NEW, sha256="0" * 64)
    assert refusal_of(state_in("metadata", active=known), NEW) == "E_CONFLICT"
    assert refusal_of(state_in("metadata", previous=known), NEW) == "E_CONFLICT"


def test_denied_is_what_this_deployment_rolled_back():
    failed = rules.follow(state_in("trial"), "failed", code="E_HANG")
    again = rules.take_up(failed, order(6))
    assert refusal_of(again, NEW) == "E_DENIED"
    new_id = Order(
        desired=Desired(deployment_id="e", counter=7, name="ssd", version="2"), scope="device"
    )
    assert refusal_of(rules.take_up(failed, new_id), NEW) is None


def test_pauses_grow_to_an_hour_and_are_never_all_alike():
    longest = [rules.back_off_s(failures, 1.0) for failures in range(12)]
    assert longest[:4] == [30, 60, 120, 240]
    assert longest[-1] == rules.back_off_s(10_000, 1.0) == 3600
    assert rules.back_off_s(3, 0.0) == 120
    # All tries of the network together take days.
    total_s = sum(rules.back_off_s(n, 0.5) for n in range(rules.LIMITS["metadata"].tries))
    assert 2.5 * 86400 < total_s < 5 * 86400


def test_bundles_that_are_still_needed_are_kept():
    state = state_in("selftest", previous=replace(OLD, sha256="a" * 64))
    assert rules.kept(state) == {OLD.sha256, "a" * 64, NEW.sha256}
    assert rules.kept(state_in("refused")) == {OLD.sha256}
