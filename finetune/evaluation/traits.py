"""Traits of radiographs that an audit asks the reference model for: novelty, and the difference of the two sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from finetune.models.checkpoint import checkpoint_folder, load_checkpoint


class ReferenceTraits:
    """Reference model that comes with the project. It has learnt from children's radiographs."""

    def __init__(self) -> None:
        model, _ = load_checkpoint(checkpoint_folder(Path("reference")))
        self._model = model.eval()

    @torch.inference_mode()
    def __call__(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Look at prepared radiographs.

        Args:
            images: uint8 (n, 224, 224), stretched to squares.

        Returns:
            novelty, float32 (n,), 1 = limit; and sides, float32 (n, c), which change sign when an image is mirrored.
        """
        upright = torch.from_numpy(images[:, None].copy())
        novelty = self._model(upright)[3][:, 0]
        # Padding makes the network itself lopsided; that cancels out in the difference.
        sides = self._left_minus_right(upright) - self._left_minus_right(upright.flip(-1))
        return novelty.numpy(), sides.numpy()

    def _left_minus_right(self, images: torch.Tensor) -> torch.Tensor:
        features = self._model.classifier.features(images)
        half = features.shape[-1] // 2
        return features[..., :half].mean(dim=(2, 3)) - features[..., -half:].mean(dim=(2, 3))
