# Sourced by demo, test and check: finds a Python, makes a virtual environment, installs into it.
# Asks nothing. As root (or with a sudo that needs no password) it installs what Debian has;
# otherwise it says what is missing and goes on where it can.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# apt_install WHY PACKAGE...: true when the packages are there afterwards.
apt_install() {
    local why=$1 sudo=()
    shift
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" -ne 0 ]; then
        if ! { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }; then
            say "missing: $* ($why). Not root, so not installed; to have it: sudo apt install $*"
            return 1
        fi
        sudo=(sudo -n)
    fi
    say "installing $* ($why)"
    local quiet=(-qq -y -o DPkg::Lock::Timeout=300 --no-install-recommends)
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get "${quiet[@]}" install "$@" >/dev/null 2>&1 ||
        { "${sudo[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 update >/dev/null 2>&1 &&
            "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get "${quiet[@]}" install "$@" >/dev/null; } ||
        { say "could not install: $*"; return 1; }
}

# apt_unpack WHY PACKAGE FOLDER PROGRAM...: puts programs of a package into a folder without
# installing it: no service of it is started, and nobody has to be root.
apt_unpack() {
    local why=$1 package=$2 folder=$3 work program
    shift 3
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    say "fetching $* ($why)"
    work=$(mktemp -d)
    if (cd "$work" && { apt_download "$package" || { apt_update && apt_download "$package"; }; }) &&
        dpkg-deb --extract "$work"/*.deb "$work/tree"; then
        for program in "$@"; do
            install -m 755 "$(find "$work/tree/usr" -path "*bin/$program")" "$folder"
        done
    else
        say "could not fetch: $package"
    fi
    rm -rf "$work"
}

apt_download() { apt-get -qq download "$1" >/dev/null 2>&1; }

apt_update() {
    if [ "$(id -u)" -eq 0 ]; then
        apt-get -qq -o DPkg::Lock::Timeout=300 update >/dev/null 2>&1
    else
        command -v sudo >/dev/null && sudo -n apt-get -qq update >/dev/null 2>&1
    fi
}

# find_python [LAST_MINOR]: prints a CPython from 3.10 up to 3.LAST_MINOR (default 13).
# $PYTHON wins; then `python3`, then the versioned names, newest first.
find_python() {
    local last=${1:-13} candidate
    local test="import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $last))"
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.10; do
        if command -v "$candidate" >/dev/null && "$candidate" -c "$test" 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

# make_venv FOLDER PYTHON: a virtual environment with pip, by whichever means this machine has.
make_venv() {
    local folder=$1 python=$2
    [ -x "$folder/bin/python" ] && "$folder/bin/python" -m pip --version >/dev/null 2>&1 && return 0
    rm -rf "$folder"
    "$python" -m venv "$folder" >/dev/null 2>&1 && return 0
    rm -rf "$folder"
    # Debian splits ensurepip off into python3-venv.
    if apt_install "virtual environments" python3-venv; then
        "$python" -m venv "$folder" && return 0
        rm -rf "$folder"
    fi
    # Without it, a pip that is there can still fill an environment made without one.
    "$python" -m venv --without-pip "$folder" 2>/dev/null &&
        "$python" -m pip --python "$folder/bin/python" install -q pip 2>/dev/null && return 0
    rm -rf "$folder"
    "$python" -m virtualenv -q "$folder" 2>/dev/null && return 0
    if command -v uv >/dev/null && uv venv -q --seed --python "$python" "$folder"; then return 0; fi
    die "cannot make a virtual environment: sudo apt install python3-venv"
}

# install_into FOLDER EXTRAS: installs this project, again only when pyproject.toml has changed.
install_into() {
    local folder=$1 extras=$2
    local stamp="$folder/.installed-$extras" sum
    sum=$(cksum "$project/pyproject.toml" "$project/agent/__init__.py")
    [ "$(cat "$stamp" 2>/dev/null)" = "$sum" ] && return 0
    say "installing edge-agent[$extras] into ${folder#"$project"/} (some minutes on a small board)"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
        --editable "$project[$extras]" >&2 || die "pip could not install edge-agent[$extras]"
    printf '%s' "$sum" >"$stamp"
}

# need_venv EXTRAS: sets $venv to an environment with this project and those extras.
need_venv() {
    local python
    venv=$project/.venv
    if ! python=$(find_python); then
        apt_install "Python" python3 python3-venv || die "needs Python 3.10 to 3.13 on the PATH"
        python=$(find_python) || die "needs Python 3.10 to 3.13; Debian's python3 here is another"
    fi
    make_venv "$venv" "$python"
    install_into "$venv" "$1"
}
