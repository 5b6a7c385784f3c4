"""A UNet made ready for sampling: its convolutions' weights in the run's number format, its calls as CUDA graphs."""
from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from .diffae import DiffAE
from .graphs import Graphs
from .precision import AUTO, dtype_of, full_precision
from .unet import Codes, UNet, UNetConfig

Net = TypeVar("Net", UNet, DiffAE)


class AcceleratedUNet(nn.Module):
    """Stands for a frozen UNet wherever one predicts noise; see `UNet`.

    Maps are of `dtype`; statistics of norms, modulations and the output are float32. The graphs hold where the weights
    lie, so they are dropped if those have moved; that is looked at where a run begins, by its first modulation.
    """

    def __init__(self, unet: UNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.unet = copy.deepcopy(unet).eval().requires_grad_(False)
        for part in self.unet.modules():
            if isinstance(part, (nn.Conv1d, nn.Conv2d)):
                part.to(dtype)
        self.dtype, self.graphs, self.places = dtype, Graphs(), ()

    @property
    def config(self) -> UNetConfig:
        return self.unet.config

    def modulation(self, t: Tensor, z: Codes = None) -> Tensor:
        """As of `UNet`, float32."""
        return self.time_modulation(t) * self.code_modulation(z)

    def time_modulation(self, t: Tensor) -> Tensor:
        """As of `UNet`, float32."""
        self._follow_the_weights()
        with full_precision(t.device):
            return self.unet.time_modulation(t)

    def code_modulation(self, z: Codes = None) -> Tensor | float:
        """As of `UNet`, float32."""
        codes = z if isinstance(z, (list, tuple)) else [] if z is None else [z]
        if not codes:
            return 1.0
        with full_precision(codes[0].device):
            return self.unet.code_modulation(z)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """As of `UNet`; float32."""
        output, = self.graphs("", self._call, x, modulation)
        return output.to(torch.float32, copy=True)

    def _follow_the_weights(self) -> None:
        places = tuple(p.data_ptr() for p in self.unet.parameters())
        if places != self.places:
            self.graphs.clear()
            self.places = places

    def _call(self, x: Tensor, modulation: Tensor) -> tuple[Tensor]:
        with full_precision(x.device):
            x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
            return self.unet(x, modulation),


def accelerated(net: Net, device: torch.device, precision: str = AUTO) -> Net:
    """A UNet, or a DiffAE with one, ready for sampling at a precision (see `precision.autocast`): on a GPU an
    `AcceleratedUNet` takes the UNet's place, elsewhere it is the network itself. The networks are on the device."""
    if device.type != "cuda":
        return net
    if isinstance(net, UNet):
        return cast(Net, AcceleratedUNet(net, dtype_of(device, precision)))
    with torch.device("meta"):
        new = DiffAE(net.config)
    new.unet = cast(UNet, AcceleratedUNet(net.unet, dtype_of(device, precision)))
    new.encoder, new.latent_net = net.encoder, net.latent_net
    if net.latent_net:
        new.conds_mean, new.conds_std = net.conds_mean, net.conds_std
    return cast(Net, new.train(net.training))
