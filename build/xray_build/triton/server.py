"""The local server: NVIDIA's own tritonserver on a model repository, on 127.0.0.1, without Docker or a GPU.

    xray-server                                     # serves model_repository/ until Ctrl-C
    xray-server --repository DIR --port 9001 --log server.log

From Python, for tests and demonstrations:

    with TritonServer("model_repository") as server:     # ready here, or ServerStartError
        client = tritonclient.grpc.InferenceServerClient(server.url)
    # the requests in flight are answered, then it ends

The server never outlives this process. It has the Python backend alone, so it serves the configuration `embedded`; it
takes configurations as they are (no auto-completion) and loads models only when told to (no polling).
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

import click
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from xray_client import RESEARCH_USE, Endpoints
from xray_client.channel import channel_options
from xray_client.console import plain_errors, signals_interrupt

from .log import default_log, failure_reasons, fatal_before_exit, last_errors, last_line, port_taken, read_log
from .ports import DEFAULT_PORTS, PortLostError, hold_free_port, listening_ports, port_in_use
from .process import HOST, Child, ServerStartError, TritonWheel, find_models, plain_path, remove_shared_memory

__all__ = ["ServerStartError", "TritonServer", "main"]

EMBEDDED = "embedded"
POLL_S = 0.05
MOST_PORTS_LOST = 3
# tritonserver checks once a second that the last request is answered, then takes about 2 s to unload.
UNLOAD_S = 5.0


class TritonServer:
    """One tritonserver on a model repository. Start it with `with`, or with `start()` and `stop()`; once.

    Args:
        repository: Folder with a folder for each model.
        config_name: Serve `configs/<config_name>.pbtxt` of each model that has it, else its `config.pbtxt`.
            None = always `config.pbtxt`.
        port: gRPC port; 0 = any free one; None = 8001, or any free one where that is taken.
        metrics_port: Port of the Prometheus metrics, likewise; None = 8002 or any free one.
        log: File to append tritonserver's output to. None = a new file in `runs/server/` beside the repository.
        models: Models to load. None = each that has a version.
        timeout: Seconds to wait for it to be ready.
        drain: Seconds that requests in flight get to finish when it is stopped.
        verbose: Log every request.

    Attributes:
        models: Served versions of each model that is ready.
        notices: Remarks on the start for the user, such as a port that was taken or a model that was left out.
        log: The log file; None before `start`.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        config_name: str | None = EMBEDDED,
        port: int | None = None,
        metrics_port: int | None = None,
        log: str | Path | None = None,
        models: Sequence[str] | None = None,
        timeout: float = 120,
        drain: int = 30,
        verbose: bool = False,
    ) -> None:
        self.repository = Path(repository).absolute()
        self.config_name = config_name
        self.log = Path(log).absolute() if log is not None else None
        self.models: dict[str, tuple[str, ...]] = {}
        self.notices: list[str] = []
        self._wanted_ports = {"port": port, "metrics_port": metrics_port}
        self._ports = {"port": 0, "metrics_port": 0}
        self._wanted_models = tuple(models or ())
        self._given_path = self.repository
        self._timeout = timeout
        self._drain = drain
        self._verbose = verbose
        self._child: Child | None = None
        self._resources = ExitStack()

    def __enter__(self) -> TritonServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Address for gRPC clients, host:port."""
        return f"{HOST}:{self._ports['port']}"

    @property
    def metrics_url(self) -> str:
        """Address of the Prometheus metrics."""
        return f"http://{HOST}:{self._ports['metrics_port']}/metrics"

    @property
    def pid(self) -> int:
        """Process id of tritonserver itself; also its process group, to which its stubs belong."""
        return self._started.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def _started(self) -> Child:
        if self._child is None:
            raise RuntimeError("the server has not been started")
        return self._child

    def start(self) -> TritonServer:
        """Start and wait until every model is ready.

        Raises:
            ServerStartError: Something is missing, a port is taken, a model does not load, or the time is over.
        """
        if self._child is not None:
            raise RuntimeError("a TritonServer starts once: make another")
        try:
            wheel = TritonWheel.find()
            names, left_out = find_models(self.repository, self._wanted_models)
            self.notices += [f"left out model {name!r}: it has no version" for name in left_out]
            backends = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="xray-server-")))
            wheel.lay_out_backends(backends)
            self._given_path = plain_path(self.repository, backends / "repository")
            self._resources.callback(remove_shared_memory, backends.name)
            self._run_on_free_ports(wheel, names, backends)
        except OSError as err:
            self.kill()
            raise ServerStartError(f"{err.strerror}: {err.filename}" if err.filename else str(err)) from err
        except BaseException:
            self.kill()
            raise
        return self

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until tritonserver ends, at most `timeout` seconds: its exit code, or None while it runs."""
        return self._started.wait(timeout)

    def stop(self) -> bool:
        """Let the requests in flight finish, at most `drain` seconds, and end the server.

        An exception while it waits, such as a second Ctrl-C, ends it at once.

        Returns:
            True if it ended in good order, False if it had to be killed or was dead already.
        """
        child = self._child
        if child is None:
            return True
        try:
            child.terminate()
            # tritonserver's own limit does not hold while a Python model is busy: this one counts.
            return child.wait(self._drain + UNLOAD_S) == 0
        finally:
            self.kill()

    def kill(self) -> None:
        """End the server at once; requests in flight fail."""
        if self._child is not None:
            self._child.kill()
        self._resources.close()

    def last_errors(self) -> list[str]:
        """The last error lines of the log."""
        return last_errors(self._read_log())

    def _run_on_free_ports(self, wheel: TritonWheel, names: list[str], backends: Path) -> None:
        """Run on free ports; if another process takes one before tritonserver does, try others."""
        environment = wheel.environment(backends)
        lost: set[int] = set()
        while True:
            with ExitStack() as held:  # until both are chosen
                for option, wanted in self._wanted_ports.items():
                    self._ports[option] = hold_free_port(held, option, wanted, lost)
            try:
                self._run_until_ready([str(wheel.program), *self._arguments(names, backends)], environment)
                break
            except PortLostError as err:
                lost.add(err.port)
                for option, wanted in self._wanted_ports.items():
                    if wanted == err.port or len(lost) > MOST_PORTS_LOST:
                        raise port_in_use(option, err.port) from err
        for option, default in DEFAULT_PORTS.items():
            if self._wanted_ports[option] is None and self._ports[option] != default:
                self.notices.append(f"port {default} is in use; took {self._ports[option]} instead")

    def _arguments(self, names: list[str], backends: Path) -> list[str]:
        options: dict[str, object] = {
            "model-repository": self._given_path,
            "backend-directory": backends,
            "backend-config": f"python,shm-region-prefix-name={backends.name}",
            "allow-http": "false",
            "grpc-address": HOST,
            "grpc-port": self._ports["port"],
            "metrics-address": HOST,
            "metrics-port": self._ports["metrics_port"],
            "allow-gpu-metrics": "false",
            "model-control-mode": "explicit",
            "exit-on-error": "true",
            "strict-readiness": "true",
            "exit-timeout-secs": self._drain,
            "log-verbose": int(self._verbose),
        }
        if self.config_name:
            options["model-config-name"] = self.config_name
        # Auto-completion starts each model once more to ask for its configuration: 1.3 s, and the server would no
        # longer serve the configuration in the file.
        return [
            *(f"--{name}={value}" for name, value in options.items()),
            *(f"--load-model={name}" for name in names),
            "--disable-auto-complete-config",
        ]

    def _run_until_ready(self, command: list[str], environment: dict[str, str]) -> None:
        if self.log is None:
            self.log = default_log(self.repository, self._ports["port"])
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._log_start = output.tell()
            self._child = Child(command, environment, output)
        deadline = time.monotonic() + self._timeout
        while not self._is_ready():
            if time.monotonic() > deadline:
                raise ServerStartError(
                    f"not ready within {self._timeout:g} s; its last line: {last_line(self._read_log())}",
                    remedy=f"see {self.log}, or allow more with --timeout",
                )
            time.sleep(POLL_S)

    def _is_ready(self) -> bool:
        """True once every model is ready, on ports that this very process listens on.

        Raises:
            PortLostError: Another process has taken a port.
            ServerStartError: The server has ended or cannot become ready.
        """
        child = self._started
        ended = not child.running
        log = self._read_log()
        lost = port_taken(log)
        if lost is not None:
            child.kill()
            raise PortLostError(lost)
        if ended or fatal_before_exit(log):
            raise self._failed_start(log)
        if not set(self._ports.values()) <= listening_ports(child.pid):
            return False
        self.models = self._ready_models()
        return bool(self.models)

    def _ready_models(self) -> dict[str, tuple[str, ...]]:
        """Versions of each model once all are ready; empty before."""
        versions: dict[str, tuple[str, ...]] = {}
        direct = channel_options(Endpoints.parse(self.url))
        with suppress(InferenceServerException), triton.InferenceServerClient(self.url, channel_args=direct) as client:
            if client.is_server_ready(client_timeout=5):
                for model in client.get_model_repository_index(client_timeout=5).models:
                    if model.state == "READY":
                        versions[model.name] = (*versions.get(model.name, ()), model.version)
        return versions

    def _failed_start(self, log: str) -> ServerStartError:
        reasons = "; ".join(failure_reasons(log))
        remedy = f"see {self.log}"
        if "unable to find backend library" in reasons or "failed to open text file" in reasons:
            remedy = f"give the model a configs/{EMBEDDED}.pbtxt for the Python backend, the only one of this server"
        return ServerStartError(reasons, remedy=remedy)

    def _read_log(self) -> str:
        """Read what tritonserver has written since it was started."""
        return read_log(self.log, self._log_start) if self.log else ""


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="medclip-triton", prog_name="xray-server")
@click.option(
    "--repository",
    type=click.Path(path_type=Path),
    default=Path("model_repository"),
    help="Folder with a folder for each model.",
)
@click.option("--config-name", default=EMBEDDED, help="Serve configs/NAME.pbtxt of each model ('' = its config.pbtxt).")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    show_default=f"{DEFAULT_PORTS['port']}, or a free one where it is taken",
    help="gRPC port on 127.0.0.1 (0 = any free one).",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    show_default=f"{DEFAULT_PORTS['metrics_port']}, or a free one where it is taken",
    help="Port of the Prometheus metrics on 127.0.0.1 (0 = any free one).",
)
@click.option(
    "--log",
    type=click.Path(path_type=Path, dir_okay=False),
    show_default="a new file in runs/server beside the repository",
    help="File to append tritonserver's output to.",
)
@click.option("--model", "models", multiple=True, help="Load this model; repeatable.  [default: all with a version]")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=120, help="Seconds to wait for it to be ready."
)
@click.option("--verbose", is_flag=True, help="Log every request.")
def main(
    repository: Path,
    config_name: str,
    port: int | None,
    metrics_port: int | None,
    log: Path | None,
    models: tuple[str, ...],
    timeout: float,
    verbose: bool,
) -> None:
    """Serve a model repository with NVIDIA's own tritonserver, on this machine only, until Ctrl-C.

    Ctrl-C lets the requests in flight finish; a second Ctrl-C cuts them off.
    """
    server = TritonServer(
        repository,
        config_name=config_name,
        port=port,
        metrics_port=metrics_port,
        log=log,
        models=models,
        timeout=timeout,
        verbose=verbose,
    )
    with plain_errors(), signals_interrupt():
        try:
            server.start()
            _announce(server)
            code = server.wait()
        except KeyboardInterrupt:
            if server.running:
                _stop(server)
            else:
                click.echo("Stopped before it was ready.", err=True)
            return
        finally:
            server.kill()
    raise click.ClickException(_end_message(server, code))


def _announce(server: TritonServer) -> None:
    for notice in server.notices:
        click.echo(f"Note: {notice}", err=True)
    models = ", ".join(f"{name} (version {', '.join(numbers)})" for name, numbers in server.models.items())
    click.echo(
        f"READY at {server.url}: {models}; metrics {server.metrics_url}; pid {server.pid}; log {server.log}\n"
        f"{RESEARCH_USE}"
    )


def _stop(server: TritonServer) -> None:
    """End the server in good order; a second Ctrl-C, or a request that takes too long, is exit code 1."""
    try:
        click.echo("Finishing the requests in flight; Ctrl-C again cuts them off.", err=True)
        if server.stop():
            click.echo("Stopped.", err=True)
            return
        message = "a request did not finish in time: it was cut off"
    except KeyboardInterrupt:
        message = "stopped at once: requests in flight were cut off"
    raise click.ClickException(message)


def _end_message(server: TritonServer, code: int | None) -> str:
    how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
    errors = server.last_errors()
    reason = "; ".join(errors) if errors else "its log shows no error"
    return f"tritonserver ended by itself ({how}): {reason} (see {server.log})"


if __name__ == "__main__":
    main()
