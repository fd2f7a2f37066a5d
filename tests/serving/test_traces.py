"""Triton's own OpenTelemetry exporter, by the flags of docker-compose.yml, joined to the trace of the caller."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as tritongrpc

from tests.helpers.deployed import Deployed, production_flags
from tests.helpers.radiographs import grey
from tests.helpers.small_graph import publish_small
from tests.serving.test_answers_counted import png
from xray_build.repository.ensemble import ENSEMBLE_MODELS
from xray_client import XrayClient, contract

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = f"00-{TRACE}-{SPAN}-01"
Span = dict[str, Any]


class Collector:
    """What an OpenTelemetry collector receives over OTLP/HTTP, as JSON."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()

    def take(self, body: bytes) -> None:
        """One export."""
        for resource in json.loads(body)["resourceSpans"]:
            self.services.add(attributes(resource["resource"])["service.name"])
            for scope in resource["scopeSpans"]:
                self.spans += scope["spans"]

    def after(self, ask: Callable[[], Any], enough: Callable[[list[Span]], bool]) -> list[Span]:
        """The spans, as soon as there are enough; asks again where an export was lost. Triton exports every 5 s."""
        for _ in range(4):
            ask()
            deadline = time.monotonic() + 15
            while time.monotonic() < deadline:
                if enough(self.spans):
                    return self.spans
                time.sleep(0.1)
        raise AssertionError(self.spans)


@contextmanager
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector on this machine, and its address."""
    received = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            received.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield received, f"http://127.0.0.1:{server.server_port}/v1/traces"
    finally:
        server.shutdown()
        server.server_close()


def attributes(carrier: dict[str, Any]) -> dict[str, Any]:
    return {entry["key"]: next(iter(entry["value"].values())) for entry in carrier.get("attributes", [])}


def models(spans: list[Span], trace: str) -> list[str]:
    """Models that have a span in a trace."""
    found = (attributes(span) for span in spans if span["traceId"] == trace)
    return sorted(told["triton.model_name"] for told in found if "triton.model_name" in told)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traces") / "model_repository"
    publish_small(folder)
    return folder


@pytest.fixture(scope="module")
def traced(repository: Path) -> Iterator[tuple[Deployed, Collector]]:
    """A server with TRACES=TIMESTAMPS."""
    with collector() as (received, url):
        wanted = production_flags(TRACES="TIMESTAMPS", OTLP=url)
        with Deployed(repository, wanted, repository) as server:
            yield server, received


def test_the_spans_of_triton_belong_to_the_trace_of_the_client(traced: tuple[Deployed, Collector]) -> None:
    server, received = traced
    with XrayClient(server.url) as client:
        answers = []
        spans = received.after(
            lambda: answers.append(client.classify(grey(90), traceparent=CALLER)),
            lambda spans: contract.MODEL_NAME in models(spans, TRACE),
        )
    (traced_id, *_) = (attributes(span)["triton.request_id"] for span in spans if span["name"] == contract.MODEL_NAME)
    assert traced_id in [answer.request_id for answer in answers]
    assert received.services == {"medclip-triton"}


def test_the_whole_ensemble_is_one_trace_below_the_span_of_its_caller(traced: tuple[Deployed, Collector]) -> None:
    server, received = traced
    trace = "1" * 32
    encoded = tritongrpc.InferInput(contract.ENCODED, (1, 1), "BYTES")
    encoded.set_data_from_numpy(np.array([[png(90)]], dtype=object))
    everything = {contract.MODEL_NAME, *ENSEMBLE_MODELS}
    headers = {"traceparent": f"00-{trace}-{SPAN}-01"}
    with tritongrpc.InferenceServerClient(server.url) as client:
        ask = partial(client.infer, contract.ENSEMBLE_MODEL, [encoded], headers=headers, client_timeout=30)
        spans = received.after(ask, lambda spans: set(models(spans, trace)) == everything)
    tops = [span for span in spans if span["traceId"] == trace and span["name"] == "InferRequest"]
    assert {span["parentSpanId"] for span in tops} == {SPAN}


def test_spans_hold_names_and_times_and_no_pixel(traced: tuple[Deployed, Collector]) -> None:
    server, received = traced
    trace = "2" * 32
    with XrayClient(server.url) as client:
        ask = partial(client.classify, grey(91), traceparent=f"00-{trace}-{SPAN}-01")
        spans = received.after(ask, lambda spans: contract.MODEL_NAME in models(spans, trace))
    told = set().union(*(attributes(span) for span in spans))
    named = "model_name", "model_version", "trace_id", "trace_parent_id", "request_id"
    assert told == {f"triton.{name}" for name in named}


def test_nothing_is_sent_unless_it_is_asked_for(repository: Path) -> None:
    with collector() as (received, url):
        with Deployed(repository, production_flags(OTLP=url), repository) as server:
            with XrayClient(server.url) as client:
                client.classify(grey(90), traceparent=CALLER)
            assert server.stop()  # which would export what is left
        assert received.spans == []
