# What this board's devices need of the service beyond its unit: drop-ins (systemd.unit(5)), copied
# from systemd/edge-agent.service.d-examples/. They are the installer's and follow what it finds; to
# do without one, `ln -s /dev/null /etc/systemd/system/edge-agent.service.d/NAME`.
# Needs environment.sh, places.sh and $python of build.sh.
# shellcheck shell=bash disable=SC2154

# Prints the names of those that are needed here. Read from sysfs, not by lsusb or lspci, which
# small systems do not have.
needed_drop_ins() {
    local boards=/sys/firmware/devicetree/base/compatible
    if has_usb 1a6e:089a || has_usb 18d1:9302 || [[ $(/sbin/ldconfig -p) == *libedgetpu.so.1* ]]; then
        echo coral-usb.conf
    fi
    if grep -qsx 0x089a /sys/bus/pci/devices/*/device && grep -qsx 0x1ac1 /sys/bus/pci/devices/*/vendor
    then
        echo coral-pcie.conf
    fi
    if grep -qs 'raspberrypi,' "$boards"; then echo raspberry-pi-firmware.conf; fi
    if grep -qs 'nvidia,tegra' "$boards"; then echo jetson.conf; fi
    if "$python" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("picamera2"))'; then
        echo libcamera.conf
    fi
    # Not systemd-timesyncd, which leaves its word in a file.
    if [ -x /usr/sbin/chronyd ] || [ -x /usr/sbin/ntpd ]; then echo kernel-clock.conf; fi
}

has_usb() {
    local device
    for device in /sys/bus/usb/devices/*/idVendor; do
        [ "$(cat "$device" 2>/dev/null):$(cat "${device%/*}/idProduct" 2>/dev/null)" != "$1" ] ||
            return 0
    done
    return 1
}

# Sets $drop_ins_changed.
place_drop_ins() {
    local needed name from=$project/systemd/$unit.d-examples to=$unit_file.d
    drop_ins_changed=false
    needed=$(needed_drop_ins)
    for name in $needed; do
        if [ -e "$from/$name" ] && ! cmp -s "$from/$name" "$to/$name"; then
            say "writing $to/$name, for what this board has"
            install -D -m 0644 "$from/$name" "$to/$name.new"
            mv "$to/$name.new" "$to/$name"
            drop_ins_changed=true
        fi
    done
    for name in "$to"/*; do
        if [ -e "$name" ] && ! grep -qx "${name##*/}" <<<"$needed"; then
            say "removing $name: nothing here needs it"
            rm -f "$name"
            drop_ins_changed=true
        fi
    done
}
