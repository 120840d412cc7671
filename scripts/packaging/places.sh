# Where everything of an installation stands. Sourced by install and uninstall; build-deb puts it,
# with remove.sh, into the package's postrm as well.
# shellcheck shell=bash disable=SC2034

home=/opt/edge-agent
# A version is a virtual environment and its unit file; one without `.complete` is a leftover.
versions=$home/versions
# Symbolic links to a version: the one in use, and the one before it.
current=$home/current
previous=$home/previous
# An environment whose only use is its pip, so that versions need none of their own.
builder=$home/builder

settings=/etc/edge-agent/agent.toml
state=/var/lib/edge-agent
cache=/var/cache/edge-agent
user=edge-agent

# systemd.unit(5), "Unit File Load Path": /run is read before /usr/local/lib, and that before
# /usr/lib. So a unit on trial hides the installed one, and is gone after a reboot.
unit=edge-agent.service
trial_unit=/run/systemd/system/$unit
unit_file=/usr/local/lib/systemd/system/$unit
packaged_unit=/usr/lib/systemd/system/$unit
# Ends a trial whose installer died.
guard=edge-agent-trial-ends

udev_rule=/etc/udev/rules.d/59-edge-agent-coral.rules
link=/usr/local/bin/edge-agent

# sd_booted(3). False in a chroot and in most containers.
runs_systemd() { [ -d /run/systemd/system ]; }

# 9 is the lock of the installation; nothing that lives on may keep it.
ctl() { systemctl "$@" 9>&-; }

# Tells udev of new rules, and sets the rights of what is plugged in already.
reload_udev() {
    if [ ! -e /run/udev/control ] || ! command -v udevadm >/dev/null; then return 0; fi
    udevadm control --reload
    udevadm trigger --subsystem-match=usb --attr-match=idVendor=1a6e
    udevadm trigger --subsystem-match=usb --attr-match=idVendor=18d1
    udevadm trigger --subsystem-match=apex
}
