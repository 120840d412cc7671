"""TLS towards the broker: the settings, and what its errors mean for the reader.

Always at least TLS 1.2, always with the host name checked. Each error becomes one sentence
that names the key of the configuration to look at. Pure apart from reading the three files.
"""

from __future__ import annotations

import ssl
import time

from agent.config import MqttConfig
from agent.errors import BrokerError

# OpenSSL x509_vfy.h: X509_V_ERR_*.
NOT_YET_VALID, EXPIRED = 9, 10
WRONG_HOST, WRONG_ADDRESS = 62, 64
# OpenSSL sslerr.h reasons, grouped by what the reader has to do.
WANTS_CLIENT_CERTIFICATE = {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"}
REFUSED_CLIENT_CERTIFICATE = {
    "TLSV1_ALERT_UNKNOWN_CA",
    "TLSV1_ALERT_DECRYPT_ERROR",
    "SSLV3_ALERT_BAD_CERTIFICATE",
    "SSLV3_ALERT_CERTIFICATE_REVOKED",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
}
TOO_OLD = {"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION"}
NOT_TLS = {"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"}


def tls_context(settings: MqttConfig) -> ssl.SSLContext:
    """Return the TLS settings: own or system authorities, host name checked, TLS 1.2 or later."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
    except (OSError, ValueError) as error:
        raise BrokerError(
            f'mqtt.ca_file = "{settings.ca_file}": not a PEM file of certificates: {short(error)}'
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.cert_file:
        try:
            # An empty password: without one OpenSSL would ask on the terminal, and a daemon hang.
            context.load_cert_chain(settings.cert_file, settings.key_file, password="")
        except (OSError, ValueError) as error:
            raise BrokerError(
                f'mqtt.cert_file = "{settings.cert_file}", mqtt.key_file = "{settings.key_file}": '
                "must be a PEM certificate and its own key without a passphrase: "
                f"{short(error)}"
            ) from error
    return context


def explain_tls(error: OSError, where: str, settings: MqttConfig) -> str:
    """Return the sentence for an error of the TLS layer."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_certificate(error, where, settings)
    reason = getattr(error, "reason", None) or ""
    if reason in WANTS_CLIENT_CERTIFICATE and not settings.cert_file:
        return (
            f"{where} demands a client certificate; set mqtt.cert_file and mqtt.key_file ({reason})"
        )
    if reason == "SSLV3_ALERT_CERTIFICATE_EXPIRED":
        return (
            f"{where} says that the client certificate in mqtt.cert_file has expired ({reason}); "
            "renew it, or set the broker's clock"
        )
    if reason in REFUSED_CLIENT_CERTIFICATE | WANTS_CLIENT_CERTIFICATE:
        return (
            f"{where} does not accept the client certificate in mqtt.cert_file ({reason}); "
            "it must be signed by an authority the broker trusts"
        )
    if reason in TOO_OLD:
        return f"{where} speaks only a TLS older than 1.2; update the broker ({reason})"
    if reason in NOT_TLS:
        return (
            f"{where} does not speak TLS ({reason}); use its TLS port (usually 8883), "
            "or mqtt:// for a connection in the clear"
        )
    return (
        f"{where} broke off the TLS handshake ({short(error)}); does this port speak TLS, "
        "and does the broker demand a client certificate?"
    )


def _explain_certificate(
    error: ssl.SSLCertVerificationError, where: str, settings: MqttConfig
) -> str:
    said = error.verify_message
    if error.verify_code in (EXPIRED, NOT_YET_VALID):
        today = time.strftime("%Y-%m-%d", time.gmtime())
        return (
            f"the certificate of {where} is out of date ({said}); renew it, or set this "
            f"board's clock, which says {today}"
        )
    if error.verify_code in (WRONG_HOST, WRONG_ADDRESS):
        return (
            f"the certificate of {where} was issued for another host ({said}); write the "
            "name it was issued for in mqtt.url"
        )
    trusted = f'mqtt.ca_file = "{settings.ca_file}"' if settings.ca_file else "the system"
    return (
        f"the certificate of {where} is not signed by an authority that {trusted} knows "
        f"({said}); set mqtt.ca_file to the authority that signed it"
    )


def short(error: Exception) -> str:
    """Return the words of an error, without numbers and source lines of the C library."""
    if isinstance(error, ssl.SSLError):
        return error.reason or str(error)
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)
