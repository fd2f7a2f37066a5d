"""Files of weights, small and in every form, as bytes."""

from __future__ import annotations

import io
import zipfile

import torch

TENSORS = {"logit_scale": torch.tensor(2.5), "vision_model.weight": torch.arange(6.0).reshape(2, 3)}


def torch_file(tensors: object = TENSORS) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def zip_of(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()
