"""How long certificates are still good: the day one ends, a fleet is silent."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agent.config import MqttConfig
from agent.doctor.check import Check, State, ok, worst
from agent.sensors.commands import ask

# Let's Encrypt renews 30 days before the end (https://letsencrypt.org/docs/faq/); whoever does
# it by hand needs some, too.
WARN_BELOW_DAYS = 30
DAY_S = 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """From when to when a certificate is good, Unix seconds."""

    what: str
    renew: str  # what to do when it ends
    begins: float
    ends: float


def read_own(settings: MqttConfig) -> Iterator[Validity]:
    """Yield the certificates that the configuration names."""
    if settings.cert_file:
        # The ssl module reads the dates of authorities and peers alone.
        answer = ask(
            "openssl", "x509", "-noout", "-startdate", "-enddate", "-in", settings.cert_file
        )
        if answer is not None:
            dates = dict(line.split("=", 1) for line in answer.splitlines() if "=" in line)
            yield Validity(
                what=f"the client certificate {settings.cert_file}",
                renew="sign a new client certificate for this board",
                begins=ssl.cert_time_to_seconds(dates["notBefore"]),
                ends=ssl.cert_time_to_seconds(dates["notAfter"]),
            )
    if settings.ca_file:
        try:
            authorities = ssl.create_default_context(cafile=settings.ca_file).get_ca_certs()
        except (OSError, ValueError):
            return  # the broker's check says so
        # Of several one is enough, so the last to end counts.
        best = max(authorities, key=_ends, default=None)
        if best is not None:
            yield Validity(
                what=f"the authority in {settings.ca_file}",
                renew="get the authority's next certificate to every board in time",
                begins=ssl.cert_time_to_seconds(str(best["notBefore"])),
                ends=_ends(best),
            )


def read_peer(certificate: object) -> Iterator[Validity]:
    """Yield the broker's certificate, as `SSLSocket.getpeercert` gives it."""
    if isinstance(certificate, dict) and "notAfter" in certificate:
        yield Validity(
            what="the broker's certificate",
            renew="renew the broker's certificate",
            begins=ssl.cert_time_to_seconds(str(certificate["notBefore"])),
            ends=_ends(certificate),
        )


def _ends(certificate: object) -> float:
    assert isinstance(certificate, dict)
    return ssl.cert_time_to_seconds(str(certificate["notAfter"]))


def check_certificates(found: list[Validity], wall_clock: Callable[[], float] = time.time) -> Check:
    """Whether all of them are good today and for a while."""
    now = wall_clock()
    faults: list[tuple[State, str, str]] = []
    for one in found:
        days = int((one.ends - now) // DAY_S)
        if now < one.begins:
            day = time.strftime("%Y-%m-%d", time.gmtime(one.begins))
            message = f"{one.what} is not valid before {day}"
            faults.append(("fail", message, "set this board's clock"))
        elif now >= one.ends:
            faults.append(("fail", f"{one.what} ended {-days} days ago", one.renew))
        elif days < WARN_BELOW_DAYS:
            faults.append(("warn", f"{one.what} ends in {days} days", one.renew))
    if not found:
        return ok("certificates", "their dates cannot be read here (openssl is not installed)")
    first = min(found, key=lambda one: one.ends)
    message = f"{first.what} is the first to end, in {int((first.ends - now) // DAY_S)} days"
    return worst("certificates", "" if faults else message, faults)
