# Puts a version into service: tried first while `current` still names the old one.
# Needs environment.sh and places.sh; reads $watch_s of `install`.
#
#   trial unit in /run names the new version ─▶ restart ─▶ ready, up for $watch_s, models run?
#       yes: unit and `current` are switched, trial unit removed; the process just runs on
#       no:  trial unit removed ─▶ restart: the old version
#
# Whatever kills this in between, a reboot brings the old version back because /run is empty then,
# and without a reboot a timer of systemd does.
# shellcheck shell=bash disable=SC2154

# TimeoutStartSec=90 and TimeoutStopSec=15 of the unit, and some time for systemd.
start_limit_s=120
poll_s=0.5
# Models may take so many times $watch_s: 5 minutes.
models_share=15

trying=

# place_unit VERSION: its unit, where the package does not bring the same one anyway.
place_unit() {
    local own=$versions/$1/$unit
    if cmp -s "$own" "$packaged_unit"; then
        rm -f "$unit_file"
    elif ! cmp -s "$own" "$unit_file"; then
        mkdir -p "${unit_file%/*}"
        cp "$own" "$unit_file.new"
        mv "$unit_file.new" "$unit_file"
    fi
}

# The unit first: were this killed in between, the next run puts the old one's back.
switch_to() {
    place_unit "$1"
    if [ -e "$current/.complete" ] && [ "$(readlink "$current")" != "versions/$1" ]; then
        point "$previous" "$(basename "$(readlink "$current")")"
    fi
    point "$current" "$1"
}

# try_version NAME: true when it runs; false, with $why, when the old one was put back.
try_version() {
    local ran=false
    trying=$1
    read_unit
    ! runs_a_model || ran=true
    ctl stop "$guard.timer" 2>/dev/null || true
    systemd-run --quiet --collect --unit="$guard" --timer-property=AccuracySec=1s \
        --on-active="$((start_limit_s + watch_s + models_share * watch_s + 60))" /bin/sh -c \
        "rm -f $trial_unit && systemctl daemon-reload && systemctl restart $unit" 9>&- ||
        die "systemd-run cannot start a timer; $(goes_on)"
    sed "s|$current/|$versions/$1/|g" "$versions/$1/$unit" >"$trial_unit.new"
    mv "$trial_unit.new" "$trial_unit"
    ctl daemon-reload
    say "trying version $1: it must become ready and stay up for $watch_s s"
    if stays_up && { ! $ran || has_models; }; then
        [ -e "$trial_unit" ] && return 0
        why="the trial took too long"
    fi
    show_journal
    end_trial
    return 1
}

# commit_trial NAME: the version on trial becomes the installed one; the process runs on.
commit_trial() {
    switch_to "$1"
    rm -f "$trial_unit"
    ctl daemon-reload
    ctl stop "$guard.timer" 2>/dev/null || true
    trying=
}

# Back to the installed version.
end_trial() {
    rm -f "$trial_unit" "$trial_unit.new"
    ctl daemon-reload
    timeout "$start_limit_s" systemctl restart "$unit" 9>&- ||
        say "warning: the installed version does not start either: journalctl -u $unit"
    ctl stop "$guard.timer" 2>/dev/null || true
    trying=
}

# Restarts the service; true when it became ready and stayed up for $watch_s, else $why.
# Every start of a unit has an InvocationID of its own (systemd.exec(5)), so a second one means
# that the first process ended. Time is counted in polls: bash's SECONDS is the wall clock, which
# may be set at any moment after a boot.
stays_up() {
    local before ours="" polls=0 up=0
    read_unit
    before=$unit_run
    ctl restart --no-block "$unit" || { why="systemd refused to start it"; return 1; }
    while :; do
        sleep "$poll_s"
        polls=$((polls + 1))
        read_unit
        if [ "$unit_state" = failed ]; then
            why="it failed"
            return 1
        fi
        if [ -n "$unit_run" ] && [ "$unit_run" != "$before" ]; then
            ours=${ours:-$unit_run}
            if [ "$unit_run" != "$ours" ] || [ "$unit_substate" = auto-restart ]; then
                why="it ended before it was ready"
                [ "$up" -eq 0 ] || why="it ended soon after it was ready"
                return 1
            fi
            case $unit_state in
                active | reloading)
                    up=$((up + 1))
                    [ "$up" -le $((2 * watch_s)) ] || return 0
                    continue
                    ;;
            esac
        fi
        if [ "$polls" -ge $((2 * start_limit_s)) ]; then
            why="it was not ready after $start_limit_s s"
            return 1
        fi
    done
}

# The daemon is ready without its models as well, so that a board can be reached whatever they do:
# one whose models ran before must run them again, or it is worse off than it was. They are measured
# on the first start of a new runtime, which takes minutes on a slow board.
has_models() {
    local polls=0 run=$unit_run
    while [ "$polls" -le $((2 * models_share * watch_s)) ]; do
        read_unit
        [ "$unit_run" = "$run" ] || break
        ! runs_a_model || return 0
        sleep "$poll_s"
        polls=$((polls + 1))
    done
    why="its models do not run, and those of the version in use did"
    return 1
}

# What the daemon says of itself: agent/daemon/report.py, Report.summary.
runs_a_model() {
    case $unit_says in
        '' | *"no model runs"*) return 1 ;;
    esac
}

# Sets $unit_state, $unit_substate, $unit_run and $unit_says.
read_unit() {
    local key value
    unit_state='' unit_substate='' unit_run='' unit_says=''
    while IFS='=' read -r key value; do
        case $key in
            ActiveState) unit_state=$value ;;
            SubState) unit_substate=$value ;;
            InvocationID) unit_run=$value ;;
            StatusText) unit_says=$value ;;
        esac
    done < <(ctl show "$unit" -p ActiveState -p SubState -p InvocationID -p StatusText)
}

is_up() {
    read_unit
    case $unit_state in active | activating | reloading) return 0 ;; esac
    return 1
}

show_journal() {
    command -v journalctl >/dev/null || return 0
    say "the last it said:"
    journalctl --quiet --no-pager --boot --unit "$unit" --lines 12 --output cat >&2 || true
}
