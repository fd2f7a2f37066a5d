"""Write Triton's gRPC protocol as .proto files, where the public ones cannot be fetched.

    python docs/examples/protos.py protos        # protos/grpc_service.proto and protos/model_config.proto

The same messages, names and numbers as in the folder `protobuf` of github.com/triton-inference-server/common, without
the comments: they are printed from the descriptors in NVIDIA's own Python client.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto
from google.protobuf.descriptor_pb2 import FileDescriptorProto as File
from tritonclient.grpc import model_config_pb2, service_pb2

_MESSAGES = (FieldDescriptorProto.TYPE_MESSAGE, FieldDescriptorProto.TYPE_ENUM)


def proto_text(file: File) -> str:
    """One file of proto3: messages, enumerations, maps, oneofs and services; nothing else occurs in Triton's."""
    lines = ['syntax = "proto3";', f"package {file.package};"]
    lines += [f'import "{name}";' for name in file.dependency]
    for enum in file.enum_type:
        lines += _enum(enum)
    for message in file.message_type:
        lines += _message(message)
    for service in file.service:
        lines.append(f"service {service.name} {{")
        for call in service.method:
            sent, answered = (
                f"({'stream ' if streams else ''}{name})"
                for name, streams in (
                    (call.input_type, call.client_streaming),
                    (call.output_type, call.server_streaming),
                )
            )
            lines.append(f"  rpc {call.name}{sent} returns {answered} {{}}")
        lines.append("}")
    return "\n".join(lines) + "\n"


def _enum(enum: EnumDescriptorProto) -> Iterator[str]:
    yield f"enum {enum.name} {{"
    yield from (f"  {value.name} = {value.number};" for value in enum.value)
    yield "}"


def _message(message: DescriptorProto) -> Iterator[str]:
    entries = {entry.name: entry for entry in message.nested_type if entry.options.map_entry}
    yield f"message {message.name} {{"
    for enum in message.enum_type:
        yield from (f"  {line}" for line in _enum(enum))
    for nested in message.nested_type:
        if nested.name not in entries:
            yield from (f"  {line}" for line in _message(nested))
    inside = None  # the oneof that the fields before belong to
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
        if inside not in (None, oneof):
            yield "  }"
        if oneof not in (None, inside):
            yield f"  oneof {oneof} {{"
        inside = oneof
        yield f"  {_field(field, entries)}"
    if inside:
        yield "  }"
    yield "}"


def _field(field: FieldDescriptorProto, entries: dict[str, DescriptorProto]) -> str:
    entry = entries.get(field.type_name.rpartition(".")[2])
    if entry:
        key, value = entry.field
        return f"map<{_type(key)}, {_type(value)}> {field.name} = {field.number};"
    repeated = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    deprecated = " [deprecated = true]" if field.options.deprecated else ""
    return f"{repeated}{_type(field)} {field.name} = {field.number}{deprecated};"


def _type(field: FieldDescriptorProto) -> str:
    if field.type in _MESSAGES:
        return field.type_name
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def main(folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    for module in (model_config_pb2, service_pb2):
        file = File()
        module.DESCRIPTOR.CopyToProto(file)
        (folder / file.name).write_text(proto_text(file))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
