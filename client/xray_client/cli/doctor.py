"""`xray-client doctor`: find what is wrong between this machine and an answer, and how to fix it."""

from __future__ import annotations

import datetime
import email.utils
import importlib.metadata
import platform
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import click
import numpy as np

from xray_client import TLS, TLSFailed, XrayClient, XrayError
from xray_client._config import Settings
from xray_client._transports.sync import Transport

from .options import ExitCode, server_options
from .writers import printable

OK, NOTE, WRONG = "ok", "note", "WRONG"
_PACKAGES = ("medclip-triton", "grpcio", "tritonclient", "protobuf", "numpy", "pillow")
_DICOM = ("pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle")
# Certificates that end within this time get a note.
_SOON = datetime.timedelta(days=30)
# Seconds that two clocks may differ by: the `date` header is in whole seconds, and delayed by the network.
_CLOCKS_DIFFER = 30.0


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check: "ok", "note" or "WRONG", with a remedy."""

    state: str
    what: str
    remedy: str = ""


@click.command(short_help="Find what is wrong, and how to fix it.")
@server_options
def doctor(client: XrayClient) -> None:
    """Check versions, connection, TLS, clock, server, model and one answer; print problems with their remedies.

    Exit code 0 if images can be classified, 3 if not.
    """
    healthy = True
    for run in (_versions, _connection, _certificate, _clock, _answer):
        checks = []
        for check in run(client):
            checks.append(check)
            click.echo(printable(f"{check.state:<6} {check.what}"))
            if check.remedy:
                click.echo(printable(f"       -> {check.remedy}"))
        if any(check.state == WRONG for check in checks):
            healthy = False
            break  # the checks after it would fail for the same reason
    sys.exit(ExitCode.OK if healthy else ExitCode.SERVER_FAILED)


def _versions(_: XrayClient) -> Iterator[Check]:
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    yield Check(OK, f"Python {platform.python_version()} on {platform.system()} {platform.machine()}; {found}")
    missing = [name for name in _DICOM if not _installed(name)]
    if missing:
        extra = "for DICOM: pip install 'medclip-triton[dicom]'"
        yield Check(NOTE, f"not every DICOM file can be read: {', '.join(missing)} missing", extra)
    else:
        yield Check(OK, f"DICOM: pydicom {importlib.metadata.version('pydicom')} and its codecs")


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _connection(client: XrayClient) -> Iterator[Check]:
    """Look up and connect to each server; one that can be reached is enough."""
    settings = client.settings
    reached = 0
    for host, port in settings.endpoints.hosts:
        before = time.perf_counter()
        try:
            with socket.create_connection((host, port), timeout=min(settings.timeout, 5)):
                reached += 1
                yield Check(OK, f"{host}:{port} takes connections ({1000 * (time.perf_counter() - before):.1f} ms)")
        except OSError as err:
            state = NOTE if len(settings.endpoints.hosts) > 1 else WRONG
            yield Check(state, f"{host}:{port}: {err.strerror or err}", _remedy_of(err))
    if not reached and len(settings.endpoints.hosts) > 1:
        yield Check(WRONG, "none of the servers can be reached", "check --url and that a server runs")


def _remedy_of(err: OSError) -> str:
    if isinstance(err, socket.gaierror):
        return "no such host name: check --url, and the DNS of this machine"
    if isinstance(err, TimeoutError):
        return "no reply: a firewall, or the machine is down"
    if isinstance(err, ConnectionRefusedError):
        return "nothing listens there: check the port (Triton's gRPC port is by default 8001); `xray-server` starts one"
    return "check --url and the network"


def _certificate(client: XrayClient) -> Iterator[Check]:
    settings = client.settings
    for host, port in settings.endpoints.hosts:
        yield from _handshake(settings, host, port)


def _handshake(settings: Settings, host: str, port: int) -> Iterator[Check]:
    where = f"{host}:{port}"
    if settings.tls is None:
        if _speaks_tls(host, port):
            yield Check(WRONG, f"{where} speaks TLS and this client does not", "give --tls, and --tls-ca FILE")
        elif settings.endpoints.loopback:
            yield Check(OK, "no TLS, and nothing leaves this machine")
        else:
            yield Check(NOTE, "no TLS: radiographs cross the network in the clear", "give the server a certificate")
        return
    try:
        certificate = _verified(settings.tls, host, port)
    except TLSFailed as err:
        yield Check(WRONG, str(err))
        return
    except (OSError, ValueError) as err:
        yield Check(WRONG, f"TLS with {where}: {_words(err)}", _tls_remedy(err, settings.tls.server_name or host))
        return
    ends = datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), datetime.timezone.utc)
    left = ends - datetime.datetime.now(datetime.timezone.utc)
    state, remedy = (NOTE, "have it renewed") if left < _SOON else (OK, "")
    yield Check(state, f"TLS with {where}; its certificate ends on {ends:%Y-%m-%d}, in {left.days} days", remedy)
    yield Check(OK, f"clock {time.strftime('%Y-%m-%d %H:%M %Z')}, within the certificate's dates")


def _clock(client: XrayClient) -> Iterator[Check]:
    """Compare the clock with the `date` header of a proxy; Triton itself sends none."""
    with closing(Transport(client.settings)) as transport:
        date = transport.response_headers().get("date", "")
    try:
        theirs = email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        yield Check(NOTE, "clock: not compared, as the server sends no `date` header (Triton itself never does)")
        return
    apart = time.time() - theirs
    if abs(apart) <= _CLOCKS_DIFFER:
        yield Check(OK, f"clock: as the server's, within {_CLOCKS_DIFFER:g} s")
    else:
        way = "ahead of" if apart > 0 else "behind"
        remedy = "set the clock that is wrong: certificates and tokens go by it, and so do the times in two logs"
        yield Check(NOTE, f"clock: {abs(apart):.0f} s {way} the server's", remedy)


def _verified(tls: TLS, host: str, port: int) -> Any:
    """Return the server's certificate, verified as gRPC does."""
    ca, _, _ = tls.read()
    context = ssl.create_default_context(cadata=ca.decode("ascii") if ca else None)
    context.set_alpn_protocols(["h2"])
    if (
        tls.cert is not None
        and tls.key is not None
        and not isinstance(tls.cert, bytes)
        and not isinstance(tls.key, bytes)
    ):
        context.load_cert_chain(tls.cert, tls.key)
    with (
        socket.create_connection((host, port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=tls.server_name or host) as secured,
    ):
        return secured.getpeercert()


def _speaks_tls(host: str, port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=2) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except (OSError, ValueError):
        return False


def _words(err: Exception) -> str:
    return getattr(err, "verify_message", "") or getattr(err, "reason", "") or str(err)


def _tls_remedy(err: Exception, name: str) -> str:
    words = f"{_words(err)} {err}".lower()
    hints = (
        ("expired", "have the server's certificate renewed, or set this machine's clock"),
        ("not yet valid", "set this machine's clock"),
        ("mismatch", f"the certificate is not for {name}: use its name in --url, or --tls-server-name"),
        ("self-signed", "name the authority that signed it: --tls-ca FILE"),
        ("self signed", "name the authority that signed it: --tls-ca FILE"),
        ("unable to get", "name the authority that signed it: --tls-ca FILE"),
        ("wrong_version", "the server does not speak TLS: leave the TLS options out, or use its TLS port"),
        ("record", "the server does not speak TLS: leave the TLS options out, or use its TLS port"),
        ("timed out", "the server does not speak TLS: leave the TLS options out, or use its TLS port"),
        ("eof", "the server does not speak TLS: leave the TLS options out, or use its TLS port"),
        ("key values mismatch", "--tls-key is not the key of --tls-cert"),
    )
    return next((remedy for word, remedy in hints if word in words), "check --tls-ca, --tls-cert and --tls-key")


def _answer(client: XrayClient) -> Iterator[Check]:
    """Check the server, the model and the answer for a black image."""
    steps: tuple[Callable[[], str], ...] = (
        lambda: f"{client.info().server} is up",
        lambda: _ready(client),
        lambda: _round_trip(client),
    )
    for step in steps:
        try:
            result = step()
        except XrayError as err:
            yield Check(WRONG, f"{type(err).__name__}: {err.message}", err.remedy)
            return
        yield Check(OK, result)


def _ready(client: XrayClient) -> str:
    client.check()
    model = client.info()
    size, geometry = model.preprocessing.size, model.preprocessing.geometry
    return f"model {model.model}, version {', '.join(model.versions)}; images {size} x {size}, {geometry}"


def _round_trip(client: XrayClient) -> str:
    size = client.preprocessing.size
    times = []
    for _ in range(5):
        answer = client.classify(np.zeros((1, size, size), np.uint8))
        times.append(answer.timing.server_ms)
    return f"an image is answered in {min(times):.1f} ms, and the answer keeps the contract"
