"""`xray-client watch`: each file once, whatever happens to it, to the server or to the journal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.client.cli.test_classify import COMMAND, files, folder, rows, run, save
from tests.helpers.radiographs import grey
from xray_client.testing import FakeServer

__all__ = ["folder"]  # a fixture


class TestWatch:
    def test_answers_what_arrives_once_and_goes_on_after_a_restart(self, fake: FakeServer, folder: Path) -> None:
        options = "watch", folder, "--once", "--every", 0.05
        done = run(fake, *options)
        assert done.exit_code == 1, "one of them cannot be classified"
        answers = {str(row["file"]): row for row in rows(done.stdout)}
        assert sorted(answers) == [str(folder / name) for name in ("a.png", "b.PNG", "broken.jpg")]
        assert "ImageUnsupported" in str(answers[str(folder / "broken.jpg")]["error"])
        again = run(fake, *options)
        assert (again.exit_code, files(again)) == (0, [])
        save(folder / "c.png", 40)
        save(folder / "a.png", 200)  # other contents under an old name
        again = sorted(rows(run(fake, *options).stdout), key=lambda row: str(row["file"]), reverse=True)
        assert [(row["file"], row["finding"]) for row in again] == [
            (str(folder / "c.png"), "Normal"), (str(folder / "a.png"), "Pneumonia")
        ]  # fmt: skip
        assert len(rows((folder / ".xray-client.jsonl").read_text())) == 5

    def test_takes_away_a_line_that_was_cut_off_and_asks_again(self, fake: FakeServer, folder: Path) -> None:
        journal = folder / ".xray-client.jsonl"
        run(fake, "watch", folder, "--once", "--every", 0.05)
        whole = journal.read_bytes()
        journal.write_bytes(whole[:-30])
        done = run(fake, "watch", folder, "--once", "--every", 0.05)
        assert len(rows(done.stdout)) == 1
        assert len(rows(journal.read_text())) == 3

    def test_leaves_a_file_that_still_grows(self, fake: FakeServer, tmp_path: Path) -> None:
        whole = save(tmp_path / "elsewhere" / "a.png", 9).read_bytes()
        arriving = tmp_path / "in" / "a.png"
        arriving.parent.mkdir()
        arriving.write_bytes(whole[:40])
        process = self.start(fake, arriving.parent)
        for end in range(60, len(whole), max(1, len(whole) // 6)):
            time.sleep(0.1)
            with arriving.open("ab") as file:
                file.write(whole[arriving.stat().st_size : end])
        with arriving.open("ab") as file:
            file.write(whole[arriving.stat().st_size :])
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["finding"] == "Normal"
        process.terminate()
        output, _ = process.communicate(timeout=20)
        assert (process.returncode, output) == (130, "")

    def test_waits_for_a_server_that_is_gone_and_loses_nothing(
        self, fake: FakeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = sys.modules["xray_client.cli.watch"]
        monkeypatch.setattr(module, "_SERVER_PAUSE", 0.05)
        fake.fail("UNAVAILABLE", "Exceeds maximum queue size", times=12)
        done = run(fake, "watch", folder, "--once", "--every", 0.05, "--timeout", 0.3)
        assert sorted(files(done)) == [str(folder / name) for name in ("a.png", "b.PNG", "broken.jpg")]
        assert "it will be sent again" in done.stderr

    def test_a_file_that_the_system_does_not_give_waits_and_is_shown(
        self, fake: FakeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Reading this one fails with an input/output error, as a network drive's does that has gone away."""
        monkeypatch.setattr(sys.modules["xray_client.cli.watch"], "_FILE_PAUSE", 0.01)
        (folder / "broken.jpg").unlink()
        (folder / "gone.png").symlink_to("/proc/self/mem")
        done = run(fake, "watch", folder, "--once", "--every", 0.05)
        assert (done.exit_code, sorted(files(done))) == (1, [str(folder / name) for name in ("a.png", "b.PNG")])
        assert done.stderr.count("it will be read again") == 3
        shown = run(fake, "watch", folder, "--status")
        assert shown.exit_code == 1
        assert shown.stdout.startswith("2 answered, 1 waiting\n")
        assert f"{folder / 'gone.png'}: cannot be read: Input/output error, tried 3 times" in shown.stdout
        (folder / "gone.png").unlink()
        save(folder / "gone.png", 9)
        assert files(run(fake, "watch", folder, "--once", "--every", 0.05)) == [str(folder / "gone.png")]
        shown = run(fake, "watch", folder, "--status")
        assert (shown.exit_code, shown.stdout) == (0, "3 answered, 0 waiting\n")

    def test_other_content_of_the_same_size_and_time_is_another_and_other_rights_are_not(
        self, fake: FakeServer, tmp_path: Path
    ) -> None:
        path, options = tmp_path / "in" / "a.bmp", ("watch", tmp_path / "in", "--once", "--every", 0.05)
        path.parent.mkdir()
        Image.fromarray(grey(9)).save(path)
        assert len(files(run(fake, *options))) == 1
        path.chmod(0o600)
        assert files(run(fake, *options)) == []
        before = path.stat()
        Image.fromarray(grey(200)).save(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size
        assert [row["finding"] for row in rows(run(fake, *options).stdout)] == ["Pneumonia"]

    def test_a_file_of_two_names_is_one(self, fake: FakeServer, tmp_path: Path) -> None:
        path = save(tmp_path / "in" / "a.png", 9)
        (tmp_path / "in" / "b.png").hardlink_to(path)
        (tmp_path / "in" / "c.png").symlink_to(path)
        assert files(run(fake, "watch", tmp_path / "in", "--once", "--every", 0.05)) == [str(path)]

    @pytest.mark.parametrize("what", ["image", "link", "notes"])
    def test_a_journal_that_is_something_else_is_left_as_it_is(
        self, fake: FakeServer, folder: Path, tmp_path: Path, what: str
    ) -> None:
        journal = tmp_path / "journal"
        if what == "link":
            journal.symlink_to(folder / "a.png")
        else:
            journal.write_bytes((folder / "a.png").read_bytes() if what == "image" else b"to do\nno line feed")
        before = journal.read_bytes()
        done = run(fake, "watch", folder, "--once", "--journal", journal)
        assert done.exit_code == 2
        assert "the journal" in done.stderr
        assert journal.read_bytes() == before

    def test_a_journal_of_an_earlier_release_is_gone_on_with(self, fake: FakeServer, folder: Path) -> None:
        options = "watch", folder, "--once", "--every", 0.05
        run(fake, *options)
        journal = folder / ".xray-client.jsonl"
        old = [{k: v for k, v in row.items() if k not in ("changed_ns", "sha256")} for row in rows(journal.read_text())]
        journal.write_text("".join(f"{json.dumps(row)}\n" for row in old))
        assert files(run(fake, *options)) == []

    def test_is_one_at_a_time(self, fake: FakeServer, folder: Path) -> None:
        process = self.start(fake, folder)
        assert process.stdout is not None
        process.stdout.readline()
        done = run(fake, "watch", folder, "--once")
        assert done.exit_code == 2
        assert "another watch has it open" in done.stderr
        process.terminate()
        process.communicate(timeout=20)

    @staticmethod
    def start(fake: FakeServer, folder: Path) -> subprocess.Popen[str]:
        command = [*COMMAND, "watch", str(folder), "--every", "0.15", "--url", fake.url]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
