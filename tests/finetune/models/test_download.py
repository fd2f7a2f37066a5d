"""The download of official weights: https alone, once, complete, and recorded. The internet is one local server."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import HTTPSHandler, OpenerDirector, ProxyHandler, Request, build_opener

import pytest
import torch

from finetune.errors import CheckpointError
from finetune.models.download import HttpsOnly, fetch_file, fetch_text, https_opener
from finetune.models.official_weights import VOCABULARY_ADDRESS, cache_folder
from finetune.models.weights import load_official_weights
from tests.helpers.weight_files import TENSORS, torch_file, zip_of


class Web:
    """The internet as one local server: what is at each https address, and a count of the requests.

    Only the connection is a stand-in; addresses, redirects and everything after them are the real thing.
    """

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.cut_short: set[str] = set()
        self.requests: list[str] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                address = f"https://{self.headers['Host']}{self.path}"
                web.requests.append(address)
                if address in web.redirects:
                    self.send_response(302)
                    self.send_header("Location", web.redirects[address])
                    self.end_headers()
                elif address in web.pages:
                    body = web.pages[address]
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body[: len(body) // 2] if address in web.cut_short else body)
                else:
                    self.send_error(404)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def opener(self) -> OpenerDirector:
        port = self.server.server_port

        class Local(HTTPSHandler):
            def https_open(self, req: Request):  # type: ignore[no-untyped-def]
                return self.do_open(lambda host, timeout: HTTPConnection("127.0.0.1", port, timeout=timeout), req)

        return build_opener(ProxyHandler({}), HttpsOnly, Local())


PAGE = "https://github.com/RyanWangZf/MedCLIP/raw/main/medclip/medclip_vit_weight.txt"
ZIP = "https://storage.example/medclip-vit.zip"


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    web.pages = {
        PAGE: f"{ZIP}\n".encode(),
        ZIP: zip_of(("pytorch_model.bin", torch_file())),
        VOCABULARY_ADDRESS: b"[PAD]\n[UNK]\n",
    }
    yield web
    web.server.shutdown()
    web.server.server_close()


def test_official_weights_are_downloaded_once_and_recorded(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = load_official_weights("official", "medclip-vit", cache=tmp_path, opener=web.opener())
    assert web.requests == [VOCABULARY_ADDRESS, PAGE, ZIP]
    again = load_official_weights("official", "medclip-vit", cache=tmp_path, opener=web.opener())
    assert len(web.requests) == 3
    assert first.provenance == again.provenance
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in TENSORS.items())
    folder = tmp_path / "medclip-vit"
    assert again.vocabulary == folder / "vocab.txt"
    assert sorted(path.name for path in folder.iterdir()) == ["provenance.json", "pytorch_model.bin", "vocab.txt"]
    record = json.loads((folder / "provenance.json").read_text())
    assert record["address"] == ZIP == again.provenance.source
    content = web.pages[ZIP]
    assert record["files"]["medclip-vit.zip"] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert record["files"]["pytorch_model.bin"]["sha256"] == again.provenance.sha256
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.count("differs from the checksum that others report") == 3


def test_redirects_within_https_are_followed(web: Web, tmp_path: Path) -> None:
    web.redirects[PAGE] = "https://raw.example/weight.txt"
    web.pages["https://raw.example/weight.txt"] = web.pages.pop(PAGE)
    assert load_official_weights("official", "medclip-vit", cache=tmp_path, opener=web.opener()).tensors


@pytest.mark.parametrize("address", ["http://storage.example/a.zip", "file:///etc/passwd", "ftp://storage.example/a"])
def test_anything_but_https_is_refused_as_an_address_and_as_a_redirect(web: Web, tmp_path: Path, address: str) -> None:
    with pytest.raises(CheckpointError, match="downloads must use https"):
        fetch_text(address, https_opener())
    web.pages[PAGE] = address.encode()
    with pytest.raises(CheckpointError, match="must use https"):
        load_official_weights("official", "medclip-vit", cache=tmp_path, opener=web.opener())
    web.redirects[ZIP] = address
    # Python refuses a redirect to a scheme that is not of the web by itself.
    with pytest.raises(CheckpointError, match=r"must use https|is not allowed"):
        fetch_file(ZIP, tmp_path / "a.zip", web.opener(), description="test")
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"vocab.txt"}


def test_a_download_that_breaks_off_leaves_nothing_of_itself_and_the_next_one_succeeds(
    web: Web, tmp_path: Path
) -> None:
    web.cut_short.add(ZIP)
    with pytest.raises(CheckpointError, match=r"cut short|IncompleteRead"):
        load_official_weights("official", "medclip-vit", cache=tmp_path, opener=web.opener())
    assert [path.name for path in (tmp_path / "medclip-vit").iterdir()] == ["vocab.txt"]
    web.cut_short.clear()
    assert load_official_weights("official", "medclip-vit", cache=tmp_path, opener=web.opener()).tensors


def test_a_damaged_zip_is_not_kept(web: Web, tmp_path: Path) -> None:
    web.pages[ZIP] = web.pages[ZIP][:-40]
    with pytest.raises(CheckpointError, match="the zip is damaged"):
        load_official_weights("official", "medclip-vit", cache=tmp_path, opener=web.opener())
    assert [path.name for path in (tmp_path / "medclip-vit").iterdir()] == ["vocab.txt"]


def test_a_download_may_not_be_larger_than_its_limit(web: Web, tmp_path: Path) -> None:
    web.pages[ZIP] = bytes(3_000)
    with pytest.raises(CheckpointError, match="larger than 1,000"):
        fetch_file(ZIP, tmp_path / "a.zip", web.opener(), description="test", limit=1_000)
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_is_gone_says_what_to_do_instead(web: Web, tmp_path: Path) -> None:
    del web.pages[PAGE]
    with pytest.raises(CheckpointError, match=r"cannot be downloaded: .*404.*download it by hand"):
        load_official_weights("official", "medclip-vit", cache=tmp_path, opener=web.opener())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "vocab.txt", "provenance.json"])
def test_a_downloaded_file_that_has_changed_since_is_refused(web: Web, tmp_path: Path, name: str) -> None:
    load_official_weights("official", "medclip-vit", cache=tmp_path, opener=web.opener())
    path = tmp_path / "medclip-vit" / name
    path.write_bytes(path.read_bytes()[:-3] + b"???")
    with pytest.raises(CheckpointError, match=r"do not match their recorded checksums .*delete this folder"):
        load_official_weights("official", "medclip-vit", cache=tmp_path, opener=web.opener())


def test_the_cache_is_where_the_desktop_standard_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "medclip-triton"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "medclip-triton"
