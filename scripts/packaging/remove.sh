# Takes an installation away. Sourced by uninstall; build-deb puts it into the package's postrm.
# Needs places.sh. Everything may be done twice.
# shellcheck shell=bash disable=SC2154

# Stops the service and removes the program; settings and state stay.
remove_program() {
    if runs_systemd; then
        ctl stop "$guard.timer" 2>/dev/null || true
        ctl stop "$unit" 2>/dev/null || true
    fi
    if command -v systemctl >/dev/null; then
        ctl --quiet disable "$unit" 2>/dev/null || true
    fi
    rm -rf "$trial_unit" "$unit_file" "$unit_file.d"
    if [ -e "$udev_rule" ]; then
        rm -f "$udev_rule"
        reload_udev || true
    fi
    case $(readlink "$link" 2>/dev/null) in "$current"/*) rm -f "$link" ;; esac
    # The link first: what is half removed is not in use.
    rm -f "$current"
    rm -rf "$home" "$cache"
    if runs_systemd; then
        ctl daemon-reload || true
        ctl reset-failed "$unit" 2>/dev/null || true
    fi
}

# Settings, state and the user too: results that were not delivered yet, keys and passwords.
purge_all() {
    rm -rf "${settings%/*}" "$state" "/etc/systemd/system/$unit.d"
    if getent passwd "$user" >/dev/null; then userdel "$user" 2>/dev/null || true; fi
    if getent group "$user" >/dev/null; then groupdel "$user" 2>/dev/null || true; fi
}
