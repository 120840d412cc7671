# Builds a version: a virtual environment with edge-agent in it, beside the one in use.
# Needs environment.sh and places.sh; reads the options of `install`.
# shellcheck shell=bash disable=SC2154

# Megabytes of a first version: 330 for LiteRT, OpenCV, NumPy and a pip (measured on x86-64), and
# what pip needs meanwhile.
first_mb=600
# Needed besides a version as large as the one in use: what pip downloads (80 MB, measured), and
# room for results that wait for the broker.
spare_mb=200

# Sets $python, one that Debian's modules for libcamera and GStreamer are made for if it will do;
# $sees_system, whether those are there; and $system_numpy, the NumPy they come with: 1, 2 or none.
choose_python() {
    PYTHON=${PYTHON:-/usr/bin/python3}
    if ! python=$(find_python); then
        apt_install "Python" python3 python3-venv || die "needs Python 3.10 to 3.13"
        python=$(find_python) || die "needs Python 3.10 to 3.13; Debian's python3 here is another"
    fi
    # picamera2 and gi come from apt alone: they are bound to libcamera and GStreamer of the system.
    sees_system=false system_numpy=''
    if "$python" -c 'import importlib.util as u, sys
sys.exit(not (u.find_spec("picamera2") or u.find_spec("gi")))'; then
        sees_system=true
        system_numpy=$("$python" -c 'import numpy; print(numpy.__version__.split(".")[0])' \
            2>/dev/null || true)
    fi
}

# Sets $source (what pip installs) and $name, <version>-<8 digits>: other digits for other
# contents, another Python, other extras, or another view of the system's modules.
name_version() {
    local version
    if [ -n "$wheels" ] && [ -z "$wheel" ]; then
        wheel=$(find "$wheels" -maxdepth 1 -name 'edge_agent-*.whl' | sort -V | tail -n 1)
    fi
    if [ -n "$wheel" ]; then
        [ -f "$wheel" ] || die "there is no $wheel"
        source=$wheel
        version=$(basename "$wheel" | cut -d- -f2)
    else
        source=$project
        version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$project/agent/__init__.py")
    fi
    [ -n "$version" ] || die "cannot read a version from $source"
    name=$version-$({
        contents
        "$python" -c 'import sys; print(sys.version_info[:2])'
        printf '%s\n' "$extras" "$sees_system" "$system_numpy"
    } | sha256sum | cut -c 1-8)
}

contents() {
    if [ -f "$source" ]; then
        sha256sum <"$source"
    else
        (cd "$source" && find agent models pyproject.toml README.md -type f ! -name '*.pyc' -print0 |
            LC_ALL=C sort -z | xargs -0 sha256sum)
    fi
    sha256sum <"$project/systemd/$unit"
}

# Refuses before the card is full: the version in use writes to it too.
need_space() {
    local free_mb need_mb=$first_mb
    free_mb=$(df -Pm "$versions" | awk 'NR == 2 {print $4}')
    if [ -d "$current" ]; then
        need_mb=$(($(du -sm "$current/" | cut -f 1) + spare_mb))
    fi
    [ "$free_mb" -ge "$need_mb" ] ||
        die "$home has $free_mb MB free, and a new version needs $need_mb MB; $(goes_on)"
}

# What to say of the state after a failure.
goes_on() {
    if [ -e "$current/.complete" ]; then
        printf 'version %s stays as it was' "$(basename "$(readlink "$current")")"
    else
        printf 'nothing is installed'
    fi
}

# Builds $versions/$name. Nothing points there before it is complete and on the card.
build_version() {
    local new=$versions/$name said
    discard "$new"
    make_builder
    say "building version $name in $new (some minutes on a small board)"
    if ! said=$(fill_version "$new" 2>&1 >/dev/null); then
        discard "$new"
        printf '%s\n' "$said" | tail -n 12 >&2
        case $said in
            *"No space left on device"* | *"Errno 28"*)
                die "the card is full: no space left for version $name in $home; $(goes_on)" ;;
        esac
        die "version $name could not be built; $(goes_on)"
    fi
    # On the card before it counts, whatever happens to the power.
    sync -f "$new" && : >"$new/.complete" && sync -f "$new" ||
        die "version $name could not be written to the card; $(goes_on)"
}

# For the Python that is used; another one, after an upgrade of the system, needs another.
make_builder() {
    local made_for
    made_for=$("$python" --version)
    [ "$(cat "$builder/.complete" 2>/dev/null)" != "$made_for" ] || return 0
    rm -f "$builder/.complete"
    make_venv "$builder" "$python"
    sync -f "$builder" && printf '%s' "$made_for" >"$builder/.complete"
}

fill_version() {
    # What the builder's own environment holds is not in this one.
    local new=$1 pip arguments=(--ignore-installed) wanted=$source
    "$python" -m venv --without-pip "$new" || return 1
    if $sees_system; then
        # What `venv --system-site-packages` writes (Python's documentation of `site`).
        sed -i 's/^include-system-site-packages = false/include-system-site-packages = true/' \
            "$new/pyvenv.cfg" || return 1
        # Our own dependencies are installed all the same: apt may remove its modules at any time.
        # Debian's modules, picamera2's among them, are compiled for Debian's NumPy, and NumPy 2
        # breaks those made for 1 (numpy.org, NumPy 2.0 migration guide).
        if [ "$system_numpy" = 1 ]; then arguments+=("numpy<2"); fi
    fi
    [ -z "$extras" ] || wanted="$source[$extras]"
    [ -z "$wheels" ] || arguments+=(--no-index --find-links "$wheels")
    # pip's own scratch files too go where a killed installation is cleaned up, and not to a /tmp
    # that on small boards is memory.
    mkdir "$new/tmp" || return 1
    # A pip may be run as a folder, by any Python of its minor version.
    pip=$(echo "$builder"/lib/python3.*/site-packages/pip)
    TMPDIR=$new/tmp PIP_ROOT_USER_ACTION=ignore "$new/bin/python" "$pip" install --quiet --no-input \
        --disable-pip-version-check "${arguments[@]}" "$wanted" || return 1
    rm -rf "$new/tmp"
    cp "$project/systemd/$unit" "$new/$unit" || return 1
    "$new/bin/edge-agent" --version || return 1
}

# Removes a version; one that is half removed does not count any more.
discard() {
    rm -f "$1/.complete"
    rm -rf "$1"
}

# point LINK VERSION: sets a symbolic link of $home, in one step (rename(2)), and on the card.
point() {
    ln -sfn "versions/$2" "$1.new" && mv -T "$1.new" "$1" && sync -f "$home"
}

# What an installer that was killed left behind.
clear_leftovers() {
    local version
    rm -f "$current.new" "$previous.new"
    for version in "$versions"/*; do
        if [ -d "$version" ] && [ ! -e "$version/.complete" ]; then
            say "removing $version, which an earlier installation did not finish"
            discard "$version"
        fi
    done
}

# Keeps the version in use and the one before it.
prune() {
    local version
    for version in "$versions"/*; do
        if [ "$version" -ef "$current" ] || [ "$version" -ef "$previous" ]; then continue; fi
        say "removing the old version $(basename "$version")"
        discard "$version"
    done
}
