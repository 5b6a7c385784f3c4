"""DiffAE's linear attribute classifier: attributes of a semantic code, and codes with more or less of one.

Its rows are CelebA's 40 attributes in alphabetical order. It belongs to the encoder of ffhq256_autoenc.
"""
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AttributeClassifier:
    """weight (A, D) and bias (A,) of the logits; mean and std (1, D) of z among photos."""
    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def normalised(self, z: Tensor) -> Tensor:
        """z (B, D) with the mean 0 and the deviation 1 among photos."""
        return (z - self.mean) / self.std

    def logits(self, z: Tensor) -> Tensor:
        """(B, A); the sigmoid is the probability of the attribute."""
        return self.normalised(z) @ self.weight.t() + self.bias

    def edited(self, z: Tensor, attribute: int, strength: float) -> Tensor:
        """z (B, D) with more of the attribute, less if `strength` is negative.

        strength: length of the step over the square root of D, the typical length of a normalised code. DiffAE: 0.3.
        """
        row = self.weight[attribute]
        return z + strength * z.shape[1] ** 0.5 * self.std * row / row.norm()
