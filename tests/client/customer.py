"""How a customer uses the package, for `mypy --strict`: every public type must say what it is. Not a test by itself."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_client import (
    TLS,
    AsyncXrayClient,
    Endpoints,
    Failure,
    ImageError,
    ImageSource,
    ModelInfo,
    Prediction,
    Preprocessing,
    Priority,
    ServerError,
    XrayClient,
    XrayError,
    load_radiograph,
    read_radiograph,
    render_overlay,
    write_overlay,
)
from xray_client.testing import FakeServer, outputs


def read_token() -> str:
    """A token from wherever the hospital keeps it."""
    return Path("token").read_text()


def one(folder: Path) -> float:
    """Every kind of source, every attribute of an answer."""
    tls = TLS(ca=folder / "ca.pem", cert=b"-----BEGIN", key=str(folder / "me.key"))
    with XrayClient(
        "a:8001,b:8001", tls=tls, token=read_token, headers={"site": "7"}, timeout=3.0, attempt_timeout=1.0
    ) as client:
        priority: Priority = "stat"
        pixels: npt.NDArray[np.uint8] = np.zeros((8, 8), np.uint8)
        sources: list[ImageSource] = [folder, "a.png", b"", io.BytesIO(), pixels, Image.new("L", (8, 8))]
        answers: list[Prediction] = [client.classify(source, priority=priority) for source in sources]
        p = answers[0]
        heatmap: npt.NDArray[np.float32] | None = p.heatmap
        picture: Image.Image = p.overlay(folder / "a.png")
        if heatmap is not None:
            picture = render_overlay(read_radiograph("a.png"), heatmap, preprocessing=p.preprocessing)
        picture.save("overlay.png")
        write_overlay("overlay.png", "a.png", p)
        preprocessing: Preprocessing = client.preprocessing
        prepared: npt.NDArray[np.uint8] = load_radiograph("a.png", preprocessing)
        told: ModelInfo = client.info()
        row: dict[str, object] = p.to_dict()
        print(prepared.shape, told.versions, row["finding"], p.to_json(), p.timing.attempts, p.request_id)
        return p.probability + p.novelty + p.decision + p.timing.server_ms


def many(paths: list[Path]) -> Iterator[str]:
    """Answers and failures, told apart by their type."""
    with XrayClient() as client:
        for answer in client.classify_many(paths, max_in_flight=32, ordered=False):
            if isinstance(answer, Failure):
                error: XrayError = answer.error
                yield f"{answer.file}: {error.remedy} {error.request_id} {error.attempts}"
            else:
                yield answer.finding


async def asynchronous(paths: AsyncIterator[str]) -> int:
    """The same surface, awaited."""
    async with AsyncXrayClient("dns:///triton:8001", tls=TLS()) as client:
        preprocessing: Preprocessing = await client.preprocessing()
        healthy: bool = await client.health()
        p: Prediction = await client.classify("chest.dcm", priority="routine")
        count = int(healthy) + preprocessing.size + p.decision
        async for answer in client.classify_many(paths):
            count += isinstance(answer, Prediction)
        return count


def careful(client: XrayClient) -> str:
    """Errors are caught by kind."""
    try:
        return client.classify("chest.png").finding
    except ImageError as err:
        return err.message
    except ServerError as err:
        return err.model


def impatient(client: XrayClient) -> bool:
    """Each call may have a timeout of its own."""
    client.check(timeout=1.0)
    versions: tuple[str, ...] = client.info(timeout=2).versions
    answers = [*client.classify_many(["a.png"], timeout=30), client.classify("a.png", timeout=0.5)]
    return client.health(timeout=1) and bool(versions) and all(isinstance(answer, Prediction) for answer in answers)


def tested() -> list[str]:
    """The fake server is typed as well."""
    with FakeServer(model="medclip") as server, XrayClient(server.url) as client:
        server.answer = lambda image: outputs(float(image.max()) / 255, novelty=0.2)
        server.fail("UNAVAILABLE", "Socket closed", times=1)
        server.serve("2", Preprocessing(geometry="stretch"))
        client.classify(np.zeros((8, 8), np.uint8))
        hosts: tuple[tuple[str, int], ...] = Endpoints.parse(server.url).hosts
        return [f"{request.request_id} {request.priority} {request.image.shape}" for request in server.requests] + [
            host for host, _ in hosts
        ]


if __name__ == "__main__":
    asyncio.run(AsyncXrayClient().close())
