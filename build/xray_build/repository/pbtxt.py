"""Protobuf text: `config.pbtxt` read and written through Triton's own schema, with an operator's comments kept."""

from __future__ import annotations

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from xray_build.errors import BuildError
from xray_client import contract

_HEADING = "# Written by `python -m xray_build.repository`"


def parse_config(text: str) -> pb.ModelConfig:
    """Read a `config.pbtxt`.

    Raises:
        BuildError: The text is not a configuration, or has a field that Triton's schema does not have.
    """
    try:
        config: pb.ModelConfig = text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as err:
        raise BuildError(f"not a Triton model configuration: {err}") from err
    return config


def to_text(config: pb.ModelConfig, engine: str = "") -> str:
    """Text of a configuration, below a heading that names the command and, where given, the engine."""
    heading = f"{_HEADING}: engine {engine}.\n" if engine else f"{_HEADING}.\n"
    text: str = text_format.MessageToString(config, use_short_repeated_primitives=True)
    return heading + text


def updated_text(text: str, config: pb.ModelConfig, engine: str) -> str:
    """Change a configuration's text so that it says what `config` says.

    Comments survive where only the preprocessing or the model card changes; anything else is written anew.

    Args:
        text: Text of the file as it is.
        config: The configuration that it must become.
        engine: Name of its engine, for the heading.
    """
    current = parse_config(text)
    if current == config:
        return text
    for name in (contract.PREPROCESSING_PARAMETER, contract.CARD_PARAMETER):
        before, after = _parameter_text(current, name), _parameter_text(config, name)
        if before and before in text:
            text = text.replace(before, after)
        elif not before:
            text = text.rstrip("\n") + "\n" + after
    return text if parse_config(text) == config else to_text(config, engine)


def _parameter_text(config: pb.ModelConfig, name: str) -> str:
    """One parameter as `to_text` writes it; empty if the configuration does not have it."""
    if name not in config.parameters:
        return ""
    text: str = text_format.MessageToString(pb.ModelConfig(parameters={name: config.parameters[name]}))
    return text
