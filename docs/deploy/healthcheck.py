"""Whether the server in this container answers for radiographs: exit code 0 or 1. Over gRPC, since there is no HTTP.

With mutual TLS it shows the certificate `/certs/client.pem`, which any client of the site may have.
"""

import os
import struct
import sys
import zlib
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

MODEL = "xray_classifier"  # ready only when all its parts are
# The begin of an id that is not counted among the radiographs, and the priority of STAT.
HEALTH_ID, STAT = "health-check", 1


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


def ramp() -> bytes:
    """A PNG of 16 x 16 grey pixels."""
    rows = (b"\0" + bytes(range(0, 256, 16))) * 16
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def question() -> service_pb2.ModelInferRequest:
    """The request for the answer to it: a model whose process has died still says that it is ready."""
    request = service_pb2.ModelInferRequest(model_name=MODEL, id=HEALTH_ID)
    request.inputs.add(name="encoded", datatype="BYTES", shape=(1, 1))
    image = ramp()
    request.raw_input_contents.append(struct.pack("<I", len(image)) + image)
    request.outputs.add(name="probability")
    request.parameters["priority"].uint64_param = STAT
    return request


def main(url: str = "localhost:8001", certificates: str = "/certs") -> int:
    """Ask once."""
    try:
        with channel(url, Path(certificates)) as open_channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(open_channel)
            request = service_pb2.ModelReadyRequest(name=MODEL)
            if not stub.ModelReady(request, timeout=4).ready:
                return 1
            stub.ModelInfer(question(), timeout=4)
            return 0
    except (grpc.RpcError, OSError) as err:
        print(err, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
