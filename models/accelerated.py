"""Networks made ready for sampling: convolutions' weights in the run's number format, calls as CUDA graphs."""
from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from .diffae import DiffAE, LatentNet
from .graphs import Replayed
from .precision import AUTO, dtype_of, full_precision
from .unet import Codes, SemanticEncoder, UNet, UNetConfig

Net = TypeVar("Net", bound=nn.Module)


class AcceleratedUNet(Replayed):
    """Stands for a frozen UNet wherever one predicts noise; see `UNet`.

    Maps are of `dtype`; statistics of norms, modulations and the output are float32.
    """

    def __init__(self, unet: UNet, dtype: torch.dtype) -> None:
        super().__init__(unet)
        for part in unet.modules():
            if isinstance(part, (nn.Conv1d, nn.Conv2d)):
                part.to(dtype)
        self.dtype = dtype

    @property
    def unet(self) -> UNet:
        return cast(UNet, self.net)

    @property
    def config(self) -> UNetConfig:
        return self.unet.config

    def modulation(self, t: Tensor, z: Codes = None) -> Tensor:
        """As of `UNet`, float32."""
        return self.time_modulation(t) * self.code_modulation(z)

    def time_modulation(self, t: Tensor) -> Tensor:
        """As of `UNet`, float32. A run begins with it: where the weights lie is looked at here, not in every call."""
        self.follow_weights()
        with full_precision(t.device):
            return self.unet.time_modulation(t)

    def code_modulation(self, z: Codes = None) -> Tensor | float:
        """As of `UNet`, float32."""
        with full_precision(next(self.unet.parameters()).device):
            return self.unet.code_modulation(z)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """As of `UNet`; float32."""
        output, = self.graphs("", self._call, x, modulation)
        return output.to(torch.float32, copy=True)

    def _call(self, x: Tensor, modulation: Tensor) -> tuple[Tensor]:
        with full_precision(x.device):
            x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
            return self.unet(x, modulation),


def accelerated(net: Net, device: torch.device, precision: str = AUTO) -> Net:
    """A UNet, an SPN, a DiffAE or a container of such, ready for sampling at a precision (see `precision.autocast`):
    on a GPU a copy, elsewhere the network itself. It does not need the caller's autocast."""
    if device.type != "cuda":
        return net
    dtype = dtype_of(device, precision)
    return cast(Net, _copied(net, dtype))


def _copied(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    if isinstance(net, UNet):
        return AcceleratedUNet(copy.deepcopy(net), dtype)
    if isinstance(net, nn.ModuleDict):
        return nn.ModuleDict({name: _copied(part, dtype) for name, part in net.items()})
    if not isinstance(net, DiffAE):
        return Replayed(copy.deepcopy(net))
    with torch.device("meta"):
        new = DiffAE(net.config)
    new.unet = cast(UNet, _copied(net.unet, dtype))
    new.encoder = cast(SemanticEncoder, _copied(net.encoder, dtype))
    if net.latent_net:
        new.latent_net = cast(LatentNet, _copied(net.latent_net, dtype))
        new.conds_mean, new.conds_std = net.conds_mean.clone(), net.conds_std.clone()
    return new.train(net.training)
