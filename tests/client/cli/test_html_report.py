"""The page with all answers, opened in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.client.cli.test_classify import folder, run, save
from tests.client.test_models import prediction
from xray_client import Failure, Prediction, ServerUnreachable
from xray_client.cli.html_report import HtmlReport
from xray_client.testing import FakeServer

__all__ = ["folder"]  # a fixture

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def answers(folder: Path) -> list[Prediction | Failure]:
    hot = np.zeros((7, 7), np.float32)
    hot[2, 5] = 0.3
    names = {"b.png": 0.2, "<img src=x onerror=alert(1)>.png": 0.9, "c.png": 0.7}
    made: list[Prediction | Failure] = []
    for name, probability in names.items():
        path = save(folder / name, round(200 * probability))
        finding = "Pneumonia" if probability > 0.5 else "Normal"
        novelty = 1.4 if name == "c.png" else 0.3
        made.append(prediction(file=str(path), finding=finding, probability=probability, novelty=novelty, heatmap=hot))
    made.append(Failure(str(folder / "z.png"), ServerUnreachable("<script>gone</script>", source="m at h:1"), "m", 3.0))
    made.append(prediction(file=str(folder / "deleted.png"), finding="Uncertain", probability=0.45))
    return made


def write_and_interrupt(folder: Path) -> None:
    with HtmlReport(folder / "report.html") as report:
        report.write(answers(folder)[0])
        raise KeyboardInterrupt


@pytest.fixture
def page(tmp_path: Path) -> Path:
    with HtmlReport(tmp_path / "report.html") as report:
        for answer in answers(tmp_path):
            report.write(answer)
    return tmp_path / "report.html"


def test_it_is_one_file_that_fetches_nothing_and_runs_nothing_from_outside(page: Path) -> None:
    text = page.read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)=["']?(?!data:)[^"']""", text.replace("&lt;img src=x", ""))
    assert "onerror=alert(1)>" not in text
    assert "<script>gone" not in text
    assert text.count("data:image/jpeg;base64,") == 6
    assert [path.name for path in page.parent.iterdir() if path.name.endswith(".part")] == []


def test_one_that_was_interrupted_is_whole_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_and_interrupt(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "This run was interrupted" in text
    assert text.rstrip().endswith("</html>")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_one_that_does_not_fit_on_the_disk_costs_no_answer(
    fake: FakeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_open = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, *rest, **more: really_open(
            Path("/dev/full") if self.name.endswith(".part") else self, *rest, **more
        ),
    )
    done = run(fake, "classify", folder / "a.png", "--format", "jsonl", "--report", folder / "report.html")
    assert json.loads(done.stdout)["finding"] == "Normal"
    assert "no report" in done.stderr
    assert "No space left" in done.stderr
    assert done.exit_code == 1
    assert not (folder / "report.html").exists()


def test_the_command_line_writes_it(fake: FakeServer, folder: Path) -> None:
    done = run(fake, "classify", folder, "--format", "jsonl", "--report", folder / "report.html")
    assert done.exit_code == 1
    text = (folder / "report.html").read_text()
    assert text.count("<tr data-finding") == 3
    assert 'class="failed"' in text
    done = run(fake, "classify", folder, "--report", folder / "missing" / "report.html")
    assert done.exit_code == 2


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt install chromium")
class TestInABrowser:
    """Chromium runs the page and prints what became of it."""

    @staticmethod
    def browse(page: Path, view: str, *options: str, tmp_path: Path) -> str:
        apart = f"--user-data-dir={tmp_path / 'browser'}"
        fixed = "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", apart
        command = [str(BROWSER), *fixed, *options, f"file://{page}#{view}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shown(self, page: Path, view: str, tmp_path: Path) -> list[str]:
        dom = self.browse(page, view, "--dump-dom", tmp_path=tmp_path)
        bodies = re.findall(r"<tr [^>]*data-finding[^>]*>.*?</tr>", dom, re.DOTALL)
        visible = [row for row in bodies if " hidden" not in row.split(">")[0]]
        return [re.search(r'class="file">.*?([^/]*)</td>', row)[1] for row in visible]  # type: ignore[index]

    def test_it_sorts_and_filters(self, page: Path, tmp_path: Path) -> None:
        odd = "&lt;img src=x onerror=alert(1)&gt;.png"
        assert self.shown(page, "", tmp_path) == ["b.png", odd, "c.png", "z.png", "deleted.png"]
        assert self.shown(page, "sort=-probability", tmp_path) == [odd, "c.png", "deleted.png", "b.png", "z.png"]
        assert self.shown(page, "sort=novelty&hide=failed,Uncertain", tmp_path)[-1] == "c.png"
        assert self.shown(page, "text=C.PNG", tmp_path) == ["c.png"]
        assert self.shown(page, "novel", tmp_path) == ["c.png"]

    def test_it_can_be_looked_at(self, page: Path, tmp_path: Path) -> None:
        picture = tmp_path / "page.png"
        self.browse(page, "", f"--screenshot={picture}", "--window-size=1200,900", tmp_path=tmp_path)
        with Image.open(picture) as shot:
            assert shot.size == (1200, 900)
            assert (
                len(shot.convert("RGB").getcolors(1_000_000)) > 100
            )  # pictures with their evidence, not an empty page
