"""Whether the server in this container answers for radiographs: exit code 0 or 1. Over gRPC, since there is no HTTP.

With mutual TLS it shows the certificate `/certs/client.pem`, which any client of the site may have.
"""

import os
import sys
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

MODEL = "xray_classifier"  # ready only when all three are


def channel(url: str, certificates: Path) -> grpc.Channel:
    """As the server's own environment says."""
    if os.environ.get("TLS") != "true":
        return grpc.insecure_channel(url)
    files = {"root_certificates": "ca.pem"}
    if os.environ.get("MUTUAL_TLS") == "true":
        files |= {"private_key": "client.key", "certificate_chain": "client.pem"}
    credentials = grpc.ssl_channel_credentials(
        **{name: (certificates / file).read_bytes() for name, file in files.items()}
    )
    return grpc.secure_channel(url, credentials)


def main(url: str = "localhost:8001", certificates: str = "/certs") -> int:
    """Ask once."""
    try:
        with channel(url, Path(certificates)) as open_channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(open_channel)
            request = service_pb2.ModelReadyRequest(name=MODEL)
            return 0 if stub.ModelReady(request, timeout=4).ready else 1
    except (grpc.RpcError, OSError) as err:
        print(err, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
