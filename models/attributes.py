"""DiffAE's linear attribute classifier: attributes of a semantic code, and codes with more or less of one.

The official one's rows are CelebA's 40 attributes in alphabetical order. It belongs to the encoder of ffhq256_autoenc.
"""
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

CELEBA = (
    "5 o'clock shadow", "arched eyebrows", "attractive", "bags under eyes", "bald", "bangs", "big lips", "big nose",
    "black hair", "blond hair", "blurry", "brown hair", "bushy eyebrows", "chubby", "double chin", "eyeglasses",
    "goatee", "gray hair", "heavy makeup", "high cheekbones", "male", "mouth slightly open", "mustache", "narrow eyes",
    "no beard", "oval face", "pale skin", "pointy nose", "receding hairline", "rosy cheeks", "sideburns", "smiling",
    "straight hair", "wavy hair", "wearing earrings", "wearing hat", "wearing lipstick", "wearing necklace",
    "wearing necktie", "young")
STRENGTH = 0.3  # DiffAE's


@dataclass(frozen=True)
class AttributeClassifier:
    """weight (A, D) and bias (A,) of the logits; mean and std (1, D) of z among photos. names: of the A attributes."""
    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor
    names: tuple[str, ...] = CELEBA

    def normalised(self, z: Tensor) -> Tensor:
        """z (B, D) with the mean 0 and the deviation 1 among photos."""
        return (z - self.mean) / self.std

    def logits(self, z: Tensor) -> Tensor:
        """(B, A); the sigmoid is the probability of the attribute."""
        return self.normalised(z) @ self.weight.t() + self.bias

    def probability(self, z: Tensor, attribute: int) -> Tensor:
        """(B,) of one attribute."""
        return self.logits(z)[:, attribute].sigmoid()

    def direction(self, attribute: int) -> Tensor:
        """(D,) in the space of z: along the attribute's row, as long as the root of D in the space of normalised codes,
        which is the typical length of one."""
        row = self.weight[attribute]
        return row.numel() ** 0.5 * self.std[0] * row / row.norm()

    def edited(self, z: Tensor, attribute: int, strength: float) -> Tensor:
        """z (B, D) with more of the attribute, less if `strength` is negative.

        strength: length of the step over the square root of D, the typical length of a normalised code. DiffAE: 0.3.
        """
        return z + strength * self.direction(attribute)

    def index(self, name: str) -> int:
        """The row of an attribute, whatever the case and _ for spaces. ValueError lists those that there are."""
        plain = {known.lower(): k for k, known in enumerate(self.names)}
        wanted = " ".join(name.replace("_", " ").lower().split())
        if wanted not in plain:
            raise ValueError(f"there is no attribute {name[:40]!r}; take one of {', '.join(self.names)}")
        return plain[wanted]
