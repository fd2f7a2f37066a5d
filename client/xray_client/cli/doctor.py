"""`xray-client doctor`: what is wrong between here and an answer, and what to do."""

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

from xray_client._client import XrayClient
from xray_client._config import TLS, Settings
from xray_client._exceptions import TLSFailed, XrayError
from xray_client._transports.sync import Transport

from .options import ANSWERED, SERVER_TROUBLE, server_options
from .writers import printable

OK, NOTE, WRONG = "ok", "note", "WRONG"
_PACKAGES = ("medclip-triton", "grpcio", "tritonclient", "protobuf", "numpy", "pillow")
_DICOM = ("pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle")
# The last day that the authorities of a certificate should be reminded.
_SOON = datetime.timedelta(days=30)
# Seconds that two clocks may differ by; what a server says is a second coarse, and as old as its way.
_CLOCKS_DIFFER = 30.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    state: str
    what: str
    remedy: str = ""


@click.command(short_help="Say what is wrong on the way to an answer, and what to do.")
@server_options
def doctor(client: XrayClient) -> None:
    """Look at versions, connection, TLS, clock, server, model and one answer; say what is wrong and what to do.

    Exit code 0 where an image would be classified, else 3.
    """
    well = True
    for look in (_versions, _connection, _certificate, _clock, _answer):
        findings = []
        for finding in look(client):
            findings.append(finding)
            click.echo(printable(f"{finding.state:<6} {finding.what}"))
            if finding.remedy:
                click.echo(printable(f"       -> {finding.remedy}"))
        if any(finding.state == WRONG for finding in findings):
            well = False
            break  # what comes after would fail for the same reason
    sys.exit(ANSWERED if well else SERVER_TROUBLE)


def _versions(_: XrayClient) -> Iterator[Finding]:
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    yield Finding(OK, f"Python {platform.python_version()} on {platform.system()} {platform.machine()}; {found}")
    missing = [name for name in _DICOM if not _installed(name)]
    if missing:
        extra = "for DICOM: pip install 'medclip-triton[dicom]'"
        yield Finding(NOTE, f"not every DICOM file can be read: {', '.join(missing)} missing", extra)
    else:
        yield Finding(OK, f"DICOM: pydicom {importlib.metadata.version('pydicom')} and its codecs")


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _connection(client: XrayClient) -> Iterator[Finding]:
    """Names, and a plain connection to each server: one that answers is enough."""
    settings = client.settings
    reached = 0
    for host, port in settings.endpoints.hosts:
        before = time.perf_counter()
        try:
            with socket.create_connection((host, port), timeout=min(settings.timeout, 5)):
                reached += 1
                yield Finding(OK, f"{host}:{port} takes connections ({1000 * (time.perf_counter() - before):.1f} ms)")
        except OSError as err:
            state = NOTE if len(settings.endpoints.hosts) > 1 else WRONG
            yield Finding(state, f"{host}:{port}: {err.strerror or err}", _remedy_of(err))
    if not reached and len(settings.endpoints.hosts) > 1:
        yield Finding(WRONG, "none of the servers can be reached", "check --url and that a server runs")


def _remedy_of(err: OSError) -> str:
    if isinstance(err, socket.gaierror):
        return "no such name: check --url, and the name server of this machine"
    if isinstance(err, TimeoutError):
        return "nothing comes back: a firewall, or the machine is down"
    if isinstance(err, ConnectionRefusedError):
        return "nothing listens there: check the port (Triton's gRPC port is by default 8001); `xray-server` starts one"
    return "check --url and the network"


def _certificate(client: XrayClient) -> Iterator[Finding]:
    settings = client.settings
    for host, port in settings.endpoints.hosts:
        yield from _handshake(settings, host, port)


def _handshake(settings: Settings, host: str, port: int) -> Iterator[Finding]:
    where = f"{host}:{port}"
    if settings.tls is None:
        if _speaks_tls(host, port):
            yield Finding(WRONG, f"{where} speaks TLS and this client does not", "give --tls, and --tls-ca FILE")
        elif settings.endpoints.loopback:
            yield Finding(OK, "no TLS, and nothing leaves this machine")
        else:
            yield Finding(NOTE, "no TLS: radiographs cross the network in the clear", "give the server a certificate")
        return
    try:
        certificate = _verified(settings.tls, host, port)
    except TLSFailed as err:
        yield Finding(WRONG, str(err))
        return
    except (OSError, ValueError) as err:
        yield Finding(WRONG, f"TLS with {where}: {_words(err)}", _tls_remedy(err, settings.tls.server_name or host))
        return
    ends = datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), datetime.timezone.utc)
    left = ends - datetime.datetime.now(datetime.timezone.utc)
    state, remedy = (NOTE, "have it renewed") if left < _SOON else (OK, "")
    yield Finding(state, f"TLS with {where}; its certificate ends on {ends:%Y-%m-%d}, in {left.days} days", remedy)
    yield Finding(OK, f"clock {time.strftime('%Y-%m-%d %H:%M %Z')}, within the certificate's dates")


def _clock(client: XrayClient) -> Iterator[Finding]:
    """Triton tells the time on none of its ports; a proxy before it may, in each of its answers."""
    with closing(Transport(client.settings)) as transport:
        said = transport.response_headers().get("date", "")
    try:
        theirs = email.utils.parsedate_to_datetime(said).timestamp()
    except (ValueError, TypeError, OverflowError):
        yield Finding(NOTE, "clock: not compared, since neither Triton nor anything before it says what time it is")
        return
    apart = time.time() - theirs
    if abs(apart) <= _CLOCKS_DIFFER:
        yield Finding(OK, f"clock: as the server's, within {_CLOCKS_DIFFER:g} s")
    else:
        way = "ahead of" if apart > 0 else "behind"
        remedy = "set the clock that is wrong: certificates and tokens go by it, and so do the times in two logs"
        yield Finding(NOTE, f"clock: {abs(apart):.0f} s {way} the server's", remedy)


def _verified(tls: TLS, host: str, port: int) -> Any:
    """The server's certificate, after the checks that gRPC makes too."""
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


def _answer(client: XrayClient) -> Iterator[Finding]:
    """Ready, model, preprocessing, and one black image there and back."""
    told: list[str] = []
    steps: tuple[tuple[str, Callable[[], str]], ...] = (
        ("server", lambda: f"{client.info().server} is up"),
        ("model", lambda: _ready(client)),
        ("answer", lambda: _round_trip(client)),
    )
    for _, step in steps:
        try:
            told.append(step())
        except XrayError as err:
            yield Finding(WRONG, f"{type(err).__name__}: {err.message}", err.remedy)
            return
        yield Finding(OK, told[-1])


def _ready(client: XrayClient) -> str:
    client.check()
    told = client.info()
    record = told.preprocessing
    versions = ", ".join(told.versions)
    return f"model {told.model}, version {versions}; images {record.size} x {record.size}, {record.geometry}"


def _round_trip(client: XrayClient) -> str:
    size = client.preprocessing.size
    times = []
    for _ in range(5):
        answer = client.classify(np.zeros((1, size, size), np.uint8))
        times.append(answer.timing.server_ms)
    return f"an image is answered in {min(times):.1f} ms, and the answer keeps the contract"
