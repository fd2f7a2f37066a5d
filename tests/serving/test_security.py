"""The client against a real Triton that wants TLS with certificates on both sides, and a header for inference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.helpers.faults import Certificate, SecuredTriton, certify, write_mean_model
from tests.helpers.radiographs import grey
from xray_build.triton.server import TritonServer
from xray_client import TLS, AuthenticationFailed, ServerUnreachable, TLSFailed, XrayClient, XrayError
from xray_client.cli.main import main as command_line

pytest.importorskip("cryptography", reason="makes the certificates; installed by the extra `dev`")

KEY = "triton-grpc-protocol-hospital"
IMAGE = grey(90)


@dataclass(frozen=True)
class Secured:
    url: str
    right: TLS  # what the server accepts
    folder: Path  # with the files of the certificates
    other: bytes  # an authority that signed nothing here


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secured")
    write_mean_model(folder / "repository")
    return folder / "repository"


def serve(repository: Path, tls: TLS, server: tuple[Path, Path], authority: Path, *more: str) -> TritonServer:
    arguments = [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={server[0]}",
        f"--grpc-server-key={server[1]}",
        f"--grpc-root-cert={authority}",
        *more,
    ]
    return SecuredTriton(repository, arguments, lambda url: XrayClient(url, tls=tls, timeout=2))


@pytest.fixture(scope="module")
def secured(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("certificates")
    authority, stranger = certify("hospital authority"), certify("another authority")
    ca, _ = authority.write(folder, "ca")
    certify("me", by=authority).write(folder, "me")
    certify("me", by=stranger).write(folder, "stranger")
    server = certify("triton.hospital.lan", by=authority, address="127.0.0.1").write(folder, "server")
    right = TLS(ca=ca, cert=folder / "me.pem", key=folder / "me.key")
    more = "--grpc-use-ssl-mutual=true", f"--grpc-restricted-protocol=inference:{KEY.rpartition('-')[2]}=let-me-in"
    with serve(repository, right, server, ca, *more) as running:
        yield Secured(running.url, right, folder, stranger.cert)


def fails(error: type[XrayError], words: str, url: str, **options: object) -> None:
    """The call fails in this way, at once and without being tried again."""
    with XrayClient(url, **options) as client:  # type: ignore[arg-type]
        with pytest.raises(error, match=words) as caught:
            client.classify(IMAGE)
        assert caught.value.remedy
        assert "let-me-in" not in str(caught.value)
        assert client.health() is False


def test_the_right_certificates_and_header_are_let_in(secured: Secured) -> None:
    with XrayClient(secured.url, tls=secured.right, headers={KEY: "let-me-in"}, token=lambda: "any") as client:
        assert round(client.classify(IMAGE).probability * 255) == 90


def test_certificates_may_be_bytes_and_the_name_another(secured: Secured) -> None:
    read = [(secured.folder / name).read_bytes() for name in ("ca.pem", "me.pem", "me.key")]
    tls = TLS(*read, server_name="triton.hospital.lan")
    with XrayClient(f"{secured.url},{secured.url}", tls=tls, headers={KEY: "let-me-in"}) as client:
        assert client.classify(IMAGE).decision == 0


def test_each_of_several_servers_has_a_name_of_its_own(secured: Secured, repository: Path, tmp_path: Path) -> None:
    authority = Certificate((secured.folder / "ca.pem").read_bytes(), (secured.folder / "ca.key").read_bytes())
    certificate = certify("localhost", by=authority).write(tmp_path, "server")
    by_address = TLS(secured.right.ca, secured.right.cert, secured.right.key, server_name="localhost")
    with serve(repository, by_address, certificate, secured.folder / "ca.pem") as second:
        by_name = second.url.replace("127.0.0.1", "localhost")
        with XrayClient(f"{secured.url},{by_name}", tls=secured.right, headers={KEY: "let-me-in"}) as client:
            assert [client.classify(IMAGE).timing.attempts for _ in range(6)] == [1] * 6
        for url in (secured.url.replace("127.0.0.1", "localhost"), second.url):
            fails(TLSFailed, "no secure connection", url, tls=secured.right)
        # One whose certificate is not accepted does not keep the other from answering.
        with XrayClient(f"{secured.url},{second.url}", tls=secured.right, headers={KEY: "let-me-in"}) as client:
            assert {round(client.classify(IMAGE).probability * 255) for _ in range(4)} == {90}


def test_an_unknown_authority_is_not_trusted(secured: Secured) -> None:
    tls = TLS(ca=secured.other, cert=secured.right.cert, key=secured.right.key)
    fails(TLSFailed, "no secure connection", secured.url, tls=tls)
    fails(TLSFailed, "no secure connection", secured.url, tls=TLS())


def test_a_certificate_for_another_host_is_not_trusted(secured: Secured) -> None:
    tls = TLS(ca=secured.right.ca, cert=secured.right.cert, key=secured.right.key, server_name="triton.clinic.lan")
    fails(TLSFailed, "no secure connection", secured.url, tls=tls)


def test_no_client_certificate_or_one_of_a_stranger_is_turned_away(secured: Secured) -> None:
    fails(ServerUnreachable, "TLS|secure", secured.url, tls=TLS(ca=secured.right.ca))
    stranger = TLS(ca=secured.right.ca, cert=secured.folder / "stranger.pem", key=secured.folder / "stranger.key")
    fails(ServerUnreachable, "TLS|secure", secured.url, tls=stranger)


def test_plain_text_to_tls_and_tls_to_plain_text_fail_and_say_so(secured: Secured, repository: Path) -> None:
    fails(ServerUnreachable, "expects TLS|secure", secured.url)
    with TritonServer(repository, port=0, metrics_port=0) as plain:
        fails(TLSFailed, "one side speaks TLS", plain.url, tls=secured.right)


@pytest.mark.parametrize("headers", [{}, {KEY: "wrong"}], ids=["no header", "wrong header"])
def test_without_the_right_header_inference_is_refused(secured: Secured, headers: dict[str, str]) -> None:
    fails(AuthenticationFailed, "restricted", secured.url, tls=secured.right, headers=headers)


def doctor(url: str, **options: object) -> Result:
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return CliRunner().invoke(command_line, ["doctor", "--url", url, "--timeout", "3", *given])


def test_the_doctor_says_what_is_wrong_with_a_connection_and_what_to_do(secured: Secured) -> None:
    right = {"tls_ca": secured.right.ca, "tls_cert": secured.right.cert, "tls_key": secured.right.key}
    (secured.folder / "other.pem").write_bytes(secured.other)
    (secured.folder / "header").write_text("let-me-in")
    done = doctor(secured.url, **right, header=f"{KEY}=@{secured.folder / 'header'}")
    assert done.exit_code == 0, done.output
    assert "in 29 days" in done.output
    for options, words in (
        (right, "AuthenticationFailed: the server is restricted"),
        ({**right, "tls_ca": secured.folder / "other.pem"}, "name the authority that signed it: --tls-ca FILE"),
        ({**right, "tls_server_name": "triton.clinic.lan"}, "the certificate is not for triton.clinic.lan"),
        ({}, "speaks TLS and this client does not"),
        ({"tls_ca": secured.right.ca}, "WRONG  ServerUnreachable"),
    ):
        done = doctor(secured.url, **options)
        assert done.exit_code == 3, done.output
        assert words in done.output


def test_the_command_line_takes_all_of_it_from_the_environment(secured: Secured, tmp_path: Path) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "chest.png")
    environment = {
        "XRAY_URL": secured.url,
        "XRAY_TLS_CA": str(secured.right.ca),
        "XRAY_TLS_CERT": str(secured.right.cert),
        "XRAY_TLS_KEY": str(secured.right.key),
        "XRAY_HEADERS": f"{KEY}=let-me-in",
        "XRAY_TOKEN": "any",
    }
    done = CliRunner(env=environment).invoke(command_line, ["classify", str(tmp_path / "chest.png"), "--format=jsonl"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output.splitlines()[0])["finding"] == "Normal"


def test_an_expired_certificate_is_not_trusted(repository: Path, tmp_path: Path) -> None:
    authority = certify("hospital authority")
    ca, _ = authority.write(tmp_path, "ca")
    server = certify("triton.hospital.lan", by=authority, address="127.0.0.1", expired=True).write(tmp_path, "server")

    class NeverReady(SecuredTriton):
        def _ready_models(self) -> dict[str, tuple[str, ...]]:
            return {"medclip": ("1",)}  # it listens, and nobody can ask it

    arguments = ["--grpc-use-ssl=true", f"--grpc-server-cert={server[0]}", f"--grpc-server-key={server[1]}"]
    with NeverReady(repository, arguments, XrayClient) as running:
        fails(TLSFailed, "no secure connection", running.url, tls=TLS(ca=ca))
        done = doctor(running.url, tls_ca=ca)
        assert done.exit_code == 3
        assert "have the server's certificate renewed, or set this machine's clock" in done.output
