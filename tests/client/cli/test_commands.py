"""More of the command line: where images, options and answers come from and go to."""

from __future__ import annotations

import csv
import email.utils
import inspect
import io
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.client.cli.test_classify import COMMAND, files, folder, rows, run, save
from tests.helpers.gates import wait_until
from xray_client.cli import main as cli
from xray_client.testing import FakeServer

__all__ = ["folder"]  # a fixture


def piped(fake: FakeServer, stdin: bytes, *arguments: object) -> Result:
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**apart).invoke(cli.main, [*map(str, arguments), "--url", fake.url], input=stdin)


class TestWhereImagesComeFrom:
    def test_folders_in_folders_with_r(self, fake: FakeServer, folder: Path) -> None:
        save(folder / ".hidden" / "d.png", 0)
        (folder / "deeper" / "up").symlink_to(folder)
        done = run(fake, "classify", "-r", folder, "--format", "jsonl")
        assert files(done) == [str(folder / name) for name in ("a.png", "b.PNG", "broken.jpg", "deeper/c.png")]

    def test_a_list_on_stdin_with_a_dash(self, fake: FakeServer, folder: Path) -> None:
        lines = os.fsencode(folder / "a.png") + b"\n\n" + os.fsencode(folder / "deeper") + b"\n"
        done = piped(fake, lines, "classify", folder / "b.PNG", "-", "--format", "jsonl")
        assert files(done) == [str(folder / name) for name in ("b.PNG", "a.png", "deeper/c.png")]

    def test_a_list_ended_by_zeros_holds_any_name(self, fake: FakeServer, tmp_path: Path) -> None:
        names = [save(tmp_path / name, 9) for name in ("a\nb.png", "c d.png", "[e].png")]
        done = piped(fake, b"".join(os.fsencode(name) + b"\0" for name in names), "classify", "-", "--format", "jsonl")
        assert files(done) == [str(name) for name in names]

    def test_a_folder_that_is_a_link_is_followed_once(self, fake: FakeServer, folder: Path, tmp_path: Path) -> None:
        study = tmp_path / "study"
        save(study / "own.png", 9)
        (study / "archive").symlink_to(folder)
        (study / "again").symlink_to(folder)
        done = run(fake, "classify", "-r", study, "--format", "jsonl")
        assert sorted(Path(name).name for name in files(done)) == ["a.png", "b.PNG", "broken.jpg", "c.png", "own.png"]

    def test_an_empty_list_is_a_usage_error(self, fake: FakeServer) -> None:
        assert piped(fake, b"", "classify", "-").exit_code == 2


class TestOutputs:
    """None of them takes the place of something else."""

    @pytest.mark.parametrize("what", ["input", "another image", "link", "folder", "device", "notes"])
    def test_a_report_never_replaces_something_else(
        self, fake: FakeServer, folder: Path, tmp_path: Path, what: str
    ) -> None:
        report = {"input": folder / "a.png", "another image": folder / "b.PNG", "folder": folder,
                  "device": Path("/dev/null")}.get(what, tmp_path / "report.html")  # fmt: skip
        if what == "link":
            report.symlink_to(folder / "b.PNG")
        elif what == "notes":
            report.write_text("to do")
        before = report.read_bytes() if report.is_file() else b""
        done = run(fake, "classify", folder / "a.png", "--report", report)
        assert done.exit_code == 2
        assert "--report" in done.stderr
        assert not report.is_file() or report.read_bytes() == before

    def test_its_own_report_is_replaced(self, fake: FakeServer, folder: Path, tmp_path: Path) -> None:
        for _ in range(2):
            done = run(fake, "classify", folder / "a.png", "--report", tmp_path / "report.html")
            assert done.exit_code == 0

    def test_an_overlay_never_follows_a_link(self, fake: FakeServer, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "a.overlay.png").symlink_to(folder / "b.PNG")
        before = (folder / "b.PNG").read_bytes()
        done = run(fake, "classify", folder / "a.png", "--heatmap-dir", tmp_path)
        assert done.exit_code == 1
        assert "this is a link" in done.stderr
        assert (folder / "b.PNG").read_bytes() == before


class TestViews:
    def test_a_threshold_is_shown_and_changes_no_finding(self, fake: FakeServer, folder: Path) -> None:
        plain = rows(run(fake, "classify", folder, "--format", "jsonl").stdout)
        viewed = rows(run(fake, "classify", folder, "--format", "jsonl", "--threshold", 0.1).stdout)
        assert [row.pop("above_threshold") for row in viewed] == [True, True, None]
        assert [row["finding"] for row in viewed] == [row["finding"] for row in plain] == ["Normal", "Pneumonia", None]
        done = run(fake, "classify", folder, "--format", "csv", "--threshold", 0.5)
        assert [row["above_threshold"] for row in csv.DictReader(io.StringIO(done.stdout))] == ["False", "True", ""]
        assert "from 0.5" in run(fake, "classify", folder, "--threshold", 0.5).stdout

    def test_a_priority_goes_to_the_server(self, fake: FakeServer, folder: Path) -> None:
        run(fake, "classify", folder / "a.png", "--priority", "stat")
        assert fake.requests[0].priority == 1


class TestWhereOptionsComeFrom:
    def test_a_home_that_cannot_be_looked_into_is_no_trouble(
        self, fake: FakeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def denied(path: Path) -> bool:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("xray_client.cli.options.default_config", lambda: Path("/root/.config/xray-client.ini"))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "is_file", denied)
            done = run(fake, "health")
        assert done.exit_code == 0, done.stderr

    def test_a_token_and_headers_from_files_and_the_environment(
        self, fake: FakeServer, folder: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "token").write_text("from-file\n")
        (tmp_path / "header").write_text("hush\n")
        one = folder / "a.png"
        run(fake, "classify", one, "--token-file", tmp_path / "token", "--header", f"X-Key=@{tmp_path / 'header'}")
        run(fake, "classify", one, XRAY_TOKEN="from-environment", XRAY_HEADERS="x-a=1 x-b=2")
        first, second = (request.headers for request in fake.requests)
        assert (first["authorization"], first["x-key"]) == ("Bearer from-file", "hush")
        assert (second["authorization"], second["x-a"], second["x-b"]) == ("Bearer from-environment", "1", "2")

    def test_an_attempt_may_be_limited(self, fake: FakeServer, folder: Path) -> None:
        fake.delay = 60
        done = run(fake, "classify", folder / "a.png", "--attempt-timeout", 1, "--format", "jsonl")
        assert "no answer within 1 s from" in str(rows(done.stdout)[0]["error"])
        assert len(fake.requests) == 3

    def test_a_token_is_not_sent_in_the_clear(self) -> None:
        done = run(None, "health", "--url", "triton.lan:8001", XRAY_TOKEN="hush")
        assert done.exit_code == 2
        assert "in the clear" in done.stderr
        assert "hush" not in done.stderr

    def test_tls_is_asked_for_by_any_of_its_options(self, fake: FakeServer, tmp_path: Path) -> None:
        done = run(fake, "health", "--tls-ca", tmp_path / "ca.pem")
        assert done.exit_code == 3
        assert "the TLS ca cannot be read" in done.stderr
        assert run(fake, "health", "--tls-cert", tmp_path / "me.pem").exit_code == 2
        assert run(fake, "health", "--tls-ca", tmp_path / "ca.pem", "--no-tls").exit_code == 0

    def test_a_configuration_file_stands_in_for_what_the_command_line_leaves_out(
        self, fake: FakeServer, folder: Path, tmp_path: Path
    ) -> None:
        config = tmp_path / "config.ini"
        config.write_text(f"[server]\nurl = {fake.url}\nheader = x-site=7\n[classify]\nformat = jsonl\njobs = 2\n")
        done = run(None, "--config", config, "classify", folder / "a.png")
        assert files(done) == [str(folder / "a.png")]
        assert fake.requests[0].headers["x-site"] == "7"
        assert run(None, "health", XRAY_CONFIG=str(config)).exit_code == 0
        (tmp_path / "xray-client.ini").write_text(config.read_text())
        assert run(None, "health", XDG_CONFIG_HOME=str(tmp_path)).exit_code == 0
        assert run(None, "--config", config, "health", "--url", "127.0.0.1:1").exit_code == 3
        for text, words in (
            ("[server]\ncolour = red", "[server] colour is not an option"),
            ("[nonsense]\na = b", "not an option"),
            ("url = x", "config.ini: File contains no section headers"),
        ):
            config.write_text(text)
            done = run(None, "--config", config, "health")
            assert done.exit_code == 2
            assert words in " ".join(done.stderr.split())

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_a_shell_learns_to_complete(self, shell: str) -> None:
        done = run(None, "completion", shell)
        assert done.exit_code == 0
        assert "_XRAY_CLIENT_COMPLETE" in done.stdout


class TestAnInterruptedStream:
    @pytest.mark.parametrize("form", ["json", "jsonl", "csv", "jsonl --as-completed"])
    def test_is_valid_up_to_the_last_answer(self, fake: FakeServer, folder: Path, form: str) -> None:
        fake.delay = 0.1
        many = [str(folder / "a.png")] * 200
        report = folder / "report.html"
        process = subprocess.Popen(
            [
                *COMMAND,
                "classify",
                *many,
                "--url",
                fake.url,
                "--format",
                *form.split(),
                "--jobs",
                "2",
                "--report",
                str(report),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: len(fake.requests) >= 6)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 130
        if form == "json":
            answers = json.loads(output)
        elif form.startswith("jsonl"):
            answers = rows(output)
        else:
            answers = list(csv.DictReader(io.StringIO(output)))
        assert 1 <= len(answers) < 200
        assert {answer["finding"] for answer in answers} == {"Normal"}
        assert "interrupted" in report.read_text()
        assert not list(folder.glob(".report*"))


class TestAsCompleted:
    def test_a_slow_image_keeps_none_waiting_and_each_is_answered_once(self, fake: FakeServer, folder: Path) -> None:
        slow, quick = save(folder / "slow.png", 77), [str(save(folder / f"{i}.png", i)) for i in range(30)]
        taken = threading.Event()

        def hold(outputs: dict[str, np.ndarray]) -> None:
            if round(float(outputs["probability"][0, 1]) * 255) == 77:
                assert taken.wait(20)
            elif len(fake.requests) > len(quick):
                taken.set()

        fake.alter = hold
        done = run(fake, "classify", slow, *quick, "--as-completed", "--format", "jsonl", "--jobs", 3, "--timeout", 30)
        answered = files(done)
        assert done.exit_code == 0
        assert sorted(answered, key=str) == sorted([str(slow), *quick])
        assert answered.index(str(slow)) > len(quick) // 2
        assert fake.most_in_flight <= 3


class TestBench:
    def test_prints_percentiles_and_draws_them(self, fake: FakeServer, tmp_path: Path) -> None:
        picture = tmp_path / "bench.png"
        done = run(fake, "bench", "--count", 20, "--callers", "1,4", "--picture", picture, "--format", "jsonl")
        first, second = rows(done.stdout)
        assert (first["callers"], second["callers"]) == (1, 4)
        assert 0 < first["p50_ms"] <= first["p90_ms"] <= first["p95_ms"] <= first["p99_ms"]  # type: ignore[operator]
        with Image.open(picture) as image:
            assert len(image.convert("RGB").getcolors(10_000)) > 5
        assert len(fake.requests) == 10 + 2 * 20
        assert "images/s" in run(fake, "bench", "--count", 10, "--callers", "2", "--prepared").stdout

    def test_wants_numbers(self, fake: FakeServer) -> None:
        assert run(fake, "bench", "--callers", "many").exit_code == 2


class TestDoctor:
    def test_finds_nothing_wrong_where_nothing_is(self, fake: FakeServer) -> None:
        done = run(fake, "doctor")
        assert done.exit_code == 0, done.stdout
        for words in ("grpcio", "takes connections", "nothing leaves this machine", "an image is answered in"):
            assert words in done.stdout
        assert "WRONG" not in done.stdout

    @pytest.mark.parametrize(
        ("seconds", "says"),
        [
            (0, "ok     clock: as the server's"),
            (-90, "s ahead of the server's\n       -> set the clock"),
            (3600, "s behind the server's"),
        ],
    )
    def test_compares_the_clock_where_something_on_the_way_tells_the_time(
        self, fake: FakeServer, seconds: int, says: str
    ) -> None:
        fake.headers["date"] = email.utils.formatdate(time.time() + seconds, usegmt=True)
        done = run(fake, "doctor")
        assert done.exit_code == 0
        assert says in done.stdout

    @pytest.mark.parametrize("headers", [{}, {"date": "yesterday"}], ids=["none", "nonsense"])
    def test_says_where_the_clock_could_not_be_compared(self, fake: FakeServer, headers: dict[str, str]) -> None:
        fake.headers = headers
        done = run(fake, "doctor")
        assert done.exit_code == 0
        assert "note   clock: not compared, as the server sends no `date` header" in done.stdout

    def test_says_where_it_stops_and_what_to_do(self, fake: FakeServer) -> None:
        done = run(None, "doctor", "--url", "127.0.0.1:1")
        assert done.exit_code == 3
        assert "WRONG  127.0.0.1:1: Connection refused\n       -> nothing listens there" in done.stdout
        fake.preprocessing["1"] = None
        done = run(fake, "doctor")
        assert "WRONG  PreprocessingMismatch: the served model does not say" in done.stdout
        fake.preprocessing["1"] = "{}"
        fake.alter = lambda outputs: outputs.update(probability=np.array([[0.3, 0.3]], np.float32))
        assert "WRONG  NotNormalised" in run(fake, "doctor").stdout

    def test_tells_tls_to_plain_text(self, fake: FakeServer) -> None:
        done = run(fake, "doctor", "--tls", "--timeout", 2)
        assert done.exit_code == 3
        assert "the server does not speak TLS" in done.stdout
