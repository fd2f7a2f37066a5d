"""Classify radiographs with nothing but grpcio and stubs generated from Triton's .proto files.

    python -m grpc_tools.protoc -I PROTOS --python_out=. --grpc_python_out=. grpc_service.proto model_config.proto
    python classify.py 127.0.0.1:8001 chest.png chest.dcm

PROTOS is the folder `protobuf` of github.com/triton-inference-server/common, or what `python docs/examples/protos.py
PROTOS` writes. Python users are better served by
`xray_client`; this shows what any language has to do.
"""

import struct
import sys
from pathlib import Path

import grpc
import grpc_service_pb2 as v2
import grpc_service_pb2_grpc as v2_grpc

FINDINGS = ("Normal", "Pneumonia", "Uncertain")
DEADLINE_S = 10


def request(image: bytes, *, urgent: bool = False) -> v2.ModelInferRequest:
    """One encoded radiograph for the ensemble."""
    message = v2.ModelInferRequest(
        model_name="xray_classifier",
        inputs=[v2.ModelInferRequest.InferInputTensor(name="encoded", datatype="BYTES", shape=[1, 1])],
        outputs=[v2.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in ("probability", "decision")],
        # Each element of a BYTES tensor: its length as four bytes, little-endian, then itself.
        raw_input_contents=[struct.pack("<I", len(image)) + image],
    )
    message.parameters["priority"].uint64_param = 1 if urgent else 2
    message.parameters["timeout"].int64_param = DEADLINE_S * 1_000_000  # in the queue, microseconds
    return message


def answer(response: v2.ModelInferResponse) -> tuple[str, float]:
    """Finding, and probability of pneumonia. The contents are in the order of `response.outputs`."""
    raw = {tensor.name: data for tensor, data in zip(response.outputs, response.raw_output_contents, strict=True)}
    probabilities = struct.unpack("<2f", raw["probability"])
    (decision,) = struct.unpack("<i", raw["decision"])
    return FINDINGS[decision], probabilities[1]


def main(url: str, *files: str) -> int:
    """Print a line for each file; what is wrong with one does not stop the others."""
    failed = 0
    with grpc.insecure_channel(url) as channel:
        stub = v2_grpc.GRPCInferenceServiceStub(channel)
        for file in files:
            try:
                finding, probability = answer(stub.ModelInfer(request(Path(file).read_bytes()), timeout=DEADLINE_S))
                print(f"{file}: {finding} {probability:.4f}")
            except grpc.RpcError as err:
                failed += 1
                print(f"{file}: {err.code().name}: {err.details()}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
