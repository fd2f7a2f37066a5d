"""The command line, against a server that makes faults on demand."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.client.test_models import KEYS
from tests.helpers.gates import wait_until
from tests.helpers.radiographs import grey
from xray_client import RESEARCH_USE, XrayClient, __version__
from xray_client.cli import main as cli
from xray_client.cli.classify import GIVE_UP_AFTER
from xray_client.cli.options import ExitCode
from xray_client.testing import FakeServer

COMMAND = [sys.executable, "-c", "from xray_client.cli.main import main; main()"]


def save(path: Path, level: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey(level)).save(path, "PNG")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two radiographs, one file that is none, and what must be left out."""
    folder = tmp_path / "study"
    save(folder / "a.png", 51)
    save(folder / "b.PNG", 204)
    (folder / "broken.jpg").write_text("no image")
    (folder / "notes.txt").write_text("not an image, and not called one")
    (folder / "a.overlay.png").write_bytes(b"an overlay from last time")
    save(folder / "deeper" / "c.png", 0)
    return folder


def run(fake: FakeServer | None, *arguments: object, **environment: str) -> Result:
    command = [*map(str, arguments), *(["--url", fake.url] if fake else [])]
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}  # click 8.1
    return CliRunner(env=environment, **apart).invoke(cli.main, command, catch_exceptions=False)


def rows(output: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.splitlines()]


def files(done: Result) -> list[object]:
    return [row["file"] for row in rows(done.stdout)]


class TestClassify:
    def test_a_folder_is_the_images_in_it(self, fake: FakeServer, folder: Path) -> None:
        done = run(fake, "classify", folder, "--format", "jsonl")
        answers = rows(done.stdout)
        assert [answer["file"] for answer in answers] == [
            str(folder / name) for name in ("a.png", "b.PNG", "broken.jpg")
        ]
        assert "2 other files left out" in done.stderr

    def test_dicom_of_an_archive_is_among_them_whatever_it_is_called(self, fake: FakeServer, tmp_path: Path) -> None:
        for name in ("IM0001", "1.2.840.113", "chest.dcm"):
            (tmp_path / name).write_bytes(bytes(128) + b"DICM")
        (tmp_path / "README").write_text("no radiograph")
        done = run(fake, "classify", tmp_path, "--format", "jsonl")
        assert files(done) == [str(tmp_path / name) for name in ("1.2.840.113", "IM0001", "chest.dcm")]
        assert "1 other files left out" in done.stderr

    def test_json_lines_have_the_agreed_keys_and_nothing_else_is_on_stdout(
        self, fake: FakeServer, folder: Path
    ) -> None:
        done = run(fake, "classify", folder, "--format", "jsonl")
        answers = rows(done.stdout)
        assert all(list(answer) == KEYS for answer in answers)
        assert [answer["finding"] for answer in answers] == ["Normal", "Pneumonia", None]
        assert answers[1]["probability"] == pytest.approx(0.8)
        assert str(answers[2]["error"]).startswith("ImageUnsupported: not a PNG")
        assert f"3 images: 1 Normal, 1 Pneumonia, 0 Uncertain, 1 failed. {RESEARCH_USE}" in done.stderr
        assert done.exit_code == ExitCode.IMAGES_FAILED == 1

    def test_json_and_csv_say_the_same(self, fake: FakeServer, folder: Path) -> None:
        lines = rows(run(fake, "classify", folder, "--format", "jsonl").stdout)
        array = json.loads(run(fake, "classify", folder, "--format", "json").stdout)
        table = list(csv.DictReader(io.StringIO(run(fake, "classify", folder, "--format", "csv").stdout)))
        assert list(table[0]) == KEYS
        for line, entry, row in zip(lines, array, table, strict=True):
            del line["milliseconds"], entry["milliseconds"], row["milliseconds"]
            assert line == entry
            assert {key: "" if value is None else str(value) for key, value in line.items()} == row

    def test_the_table_is_for_people(self, fake: FakeServer, folder: Path) -> None:
        fake.alter = lambda outputs: outputs.update(novelty=np.array([[1.5]], np.float32))
        done = run(fake, "classify", folder)
        text = " ".join(done.stdout.split())
        assert "b.PNG Pneumonia 0.800 ! 1.50 1" in text
        assert "! unlike the training radiographs: do not rely on this answer" in text
        assert "broken.jpg: not a PNG, JPEG, TIFF, BMP or DICOM image (convert it to PNG)" in text
        assert "1 failed. 2 unlike the training radiographs. " + RESEARCH_USE in text
        assert "\x1b" not in done.stdout

    def test_everything_answered_is_exit_code_0(self, fake: FakeServer, folder: Path) -> None:
        assert run(fake, "classify", folder / "a.png").exit_code == ExitCode.OK == 0

    def test_a_pattern_that_no_shell_expanded_is_expanded(self, fake: FakeServer, folder: Path) -> None:
        done = run(fake, "classify", folder / "[ab].[pP]*", "--format", "jsonl")
        assert files(done) == [str(folder / "a.png"), str(folder / "b.PNG")]

    def test_a_file_that_is_called_like_a_pattern_is_that_file(self, fake: FakeServer, tmp_path: Path) -> None:
        odd = save(tmp_path / "[red]*.png", 9)
        save(tmp_path / "red.png", 9)
        assert [answer["file"] for answer in rows(run(fake, "classify", odd, "--format", "jsonl").stdout)] == [str(odd)]
        assert "[red]*.png" in run(fake, "classify", odd).stdout

    def test_no_path_is_lost(self, fake: FakeServer, folder: Path) -> None:
        done = run(fake, "classify", folder / "none*.png", folder / "gone.png", folder / "a.png", "--format", "jsonl")
        answers = rows(done.stdout)
        assert [Path(str(answer["file"])).name for answer in answers] == ["none*.png", "gone.png", "a.png"]
        assert [answer["error"] for answer in answers][:2] == ["ImageUnavailable: no such file (check the path)"] * 2

    @pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv"])
    def test_long_and_odd_names_are_neither_cut_nor_a_crash(self, fake: FakeServer, tmp_path: Path, form: str) -> None:
        long = save(tmp_path / ("x" * 200 + ".png"), 9)
        odd = save(Path(os.fsdecode(os.fsencode(tmp_path / "line\nbreak ü ") + b"\xff.png")), 9)
        done = run(fake, "classify", long, odd, "--format", form)
        assert done.exit_code == 0
        assert "\x1b" not in done.stdout
        if form == "table":
            assert done.stdout.count("x") >= 200  # folded
        else:
            assert "x" * 200 in done.stdout
        if form in ("json", "jsonl"):
            answers = json.loads(done.stdout) if form == "json" else rows(done.stdout)
            assert answers[1]["file"] == str(odd)

    def test_an_empty_folder_and_no_path_at_all_are_usage_errors(self, fake: FakeServer, tmp_path: Path) -> None:
        assert "no images" in (done := run(fake, "classify", tmp_path)).stderr
        assert done.exit_code == 2
        assert run(fake, "classify").exit_code == 2
        assert not fake.requests


class TestHeatmaps:
    def test_are_written_as_pictures_under_the_name_of_the_image(self, fake: FakeServer, folder: Path) -> None:
        done = run(fake, "classify", folder, "--heatmap-dir", folder / "new" / "maps")
        assert done.exit_code == 1
        written = sorted((folder / "new" / "maps").iterdir())
        assert [path.name for path in written] == ["a.overlay.png", "b.overlay.png"]
        for path in written:
            with Image.open(path) as picture:
                assert picture.mode == "RGB"

    def test_of_the_same_name_do_not_overwrite_one_another(self, fake: FakeServer, tmp_path: Path) -> None:
        names = ["x/a.png", "y/a.png", "x/a.bmp", "y/A.png", "x/a.2.png"]
        files = [save(tmp_path / name, 10 * place) for place, name in enumerate(names)]
        assert run(fake, "classify", *files, "--heatmap-dir", tmp_path / "maps").exit_code == 0
        written = sorted(path.name for path in (tmp_path / "maps").iterdir())
        assert written == [
            "A.4.overlay.png", "a.2.2.overlay.png", "a.2.overlay.png", "a.3.overlay.png", "a.overlay.png"
        ]  # fmt: skip

    def test_never_overwrite_an_image_of_the_run(self, fake: FakeServer, tmp_path: Path) -> None:
        first, second = save(tmp_path / "a.png", 1), save(tmp_path / "a.overlay.png", 2)
        before = second.read_bytes()
        assert run(fake, "classify", first, second, "--heatmap-dir", tmp_path).exit_code == 0
        assert second.read_bytes() == before
        assert (tmp_path / "a.2.overlay.png").exists()

    def test_that_cannot_be_written_are_named_and_the_answer_is_kept(
        self, fake: FakeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(sys.modules["xray_client.cli.classify"], "write_overlay", full)
        done = run(fake, "classify", folder / "a.png", "--format", "jsonl", "--heatmap-dir", folder / "maps")
        assert rows(done.stdout)[0]["finding"] == "Normal"
        assert "no overlay of" in done.stderr
        assert "No space left" in done.stderr
        assert done.exit_code == 1

    def test_into_something_that_is_no_folder_is_a_usage_error(self, fake: FakeServer, folder: Path) -> None:
        assert run(fake, "classify", folder / "a.png", "--heatmap-dir", folder / "notes.txt").exit_code == 2
        assert run(fake, "classify", folder / "a.png", "--heatmap-dir", folder / "notes.txt" / "x").exit_code == 2


class TestAServerInTrouble:
    def test_that_is_not_there_is_one_line_with_the_remedy_and_no_file_is_tried(self, folder: Path) -> None:
        for command in (["classify", folder, "--format", "json"], ["health"], ["info"]):
            done = run(None, *command, XRAY_URL="127.0.0.1:1")
            assert done.exit_code == ExitCode.SERVER_FAILED == 3
            assert done.stdout == ""
            (line,) = [line for line in done.stderr.splitlines() if "left out" not in line]
            assert "127.0.0.1:1: nothing listens there" in line
            assert "`xray-server` starts one" in line

    def test_that_fails_some_images_is_exit_code_3_and_names_each(self, fake: FakeServer, folder: Path) -> None:
        fake.fail("UNAVAILABLE", "Request timeout expired")
        done = run(fake, "classify", folder, "--format", "jsonl", "--timeout", 1)
        assert done.exit_code == 3
        assert ["overloaded" in str(answer["error"]) for answer in rows(done.stdout)] == [True, True, False]

    def test_that_is_lost_on_the_way_leaves_the_rest_untried_but_answered(
        self, fake: FakeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake.fail("UNAVAILABLE", "Socket closed")
        done = run(fake, "classify", *[folder / "a.png"] * 100, "--format", "jsonl", "--jobs", 4)
        errors = [str(answer["error"]) for answer in rows(done.stdout)]
        assert len(errors) == 100
        tried = len({request.request_id for request in fake.requests})  # each more than once
        assert tried <= GIVE_UP_AFTER + 4
        assert sum("not sent" in error for error in errors) == 100 - tried
        assert done.exit_code == 3

    def test_whose_answers_break_the_contract_is_exit_code_3(self, fake: FakeServer, folder: Path) -> None:
        fake.preprocessing["1"] = None
        done = run(fake, "classify", folder / "a.png")
        assert done.exit_code == 3
        assert "does not say how its images are prepared" in done.stderr


class TestAnInterruption:
    def test_keeps_what_was_answered(self, fake: FakeServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(client: XrayClient, files: list[str], *_: object, **__: object):
            yield client.classify(files[0])
            raise KeyboardInterrupt

        monkeypatch.setattr(sys.modules["xray_client.cli.classify"], "_answers", interrupted)
        for form in ("jsonl", "json", "csv", "table"):
            done = run(fake, "classify", folder / "a.png", folder / "b.PNG", "--format", form)
            assert done.exit_code == ExitCode.INTERRUPTED == 130
            assert "Normal" in done.stdout
            assert done.stderr.splitlines() == ["xray-client: interrupted"]
            if form == "json":
                assert len(json.loads(done.stdout)) == 1

    def test_by_the_keyboard_ends_at_once(self, fake: FakeServer, folder: Path) -> None:
        fake.delay = 60
        process = subprocess.Popen(
            [*COMMAND, "classify", str(folder / "a.png"), "--url", fake.url, "--timeout", "60"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: fake.requests)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=40)  # before the answer, which takes 60 s
        assert process.returncode == 130
        assert errors.splitlines() == ["xray-client: interrupted"]


class TestTheCommandLineItself:
    @pytest.mark.parametrize(
        "options",
        [["--url", "http://localhost:8001"], ["--timeout", "0"], ["--jobs", "0"], ["--format", "xml"], ["--nonsense"]],
        ids=" ".join,
    )
    def test_a_mistake_on_the_command_line_is_exit_code_2_without_a_stack_trace(self, options: list[str]) -> None:
        done = run(None, "classify", "a.png", *options)
        assert done.exit_code == 2
        assert "Traceback" not in done.stderr

    def test_help_documents_the_exit_codes_and_version_the_version(self) -> None:
        for arguments in (["--help"], ["classify", "--help"]):
            text = run(None, *arguments).stdout
            for code in ("0 ", "1 ", "2 ", "3 ", "130 "):
                assert f"\n  {code}" in text or f"\n    {code}" in text
        assert __version__ in run(None, "--version").stdout
