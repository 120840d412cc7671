"""A real RTSP server for tests: plays one H.264 MP4 file at its own rate.

Runs under the system's Python, which has the GStreamer bindings; imports nothing of the agent.
Prints `ready PORT` once it listens. Each client starts the clip from its beginning, or, with
`--shared`, joins what is playing. It ends when its standard input is closed, so that it never
outlives the test that started it.
"""

from __future__ import annotations

import argparse
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


def main() -> None:
    """Serve until standard input is closed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--port", default="0", help="0: any free one")
    parser.add_argument("--path", default="clip")
    parser.add_argument("--user")
    parser.add_argument("--password")
    parser.add_argument("--shared", action="store_true")
    given = parser.parse_args()

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(given.port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        f"( filesrc location={given.file} ! qtdemux ! h264parse"
        " ! rtph264pay name=pay0 pt=96 config-interval=-1 )"
    )
    factory.set_shared(given.shared)
    if given.user:
        _require_password(server, factory, given.user, given.password or "")
    server.get_mount_points().add_factory(f"/{given.path}", factory)
    if server.attach(None) == 0:
        sys.exit(f"port {given.port} is taken")
    loop = GLib.MainLoop()
    GLib.io_add_watch(
        GLib.IOChannel.unix_new(0),
        GLib.PRIORITY_DEFAULT,
        GLib.IOCondition.HUP,
        lambda *_: loop.quit(),
    )
    print("ready", server.get_bound_port(), flush=True)
    loop.run()


def _require_password(
    server: GstRtspServer.RTSPServer,
    factory: GstRtspServer.RTSPMediaFactory,
    user: str,
    password: str,
) -> None:
    role = GstRtspServer.RTSPToken()
    role.set_string("media.factory.role", "viewer")
    auth = GstRtspServer.RTSPAuth()
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), role)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_role("viewer")
    permissions.add_permission_for_role("viewer", "media.factory.access", True)
    permissions.add_permission_for_role("viewer", "media.factory.construct", True)
    factory.set_permissions(permissions)


if __name__ == "__main__":
    main()
