"""LoRA, low-rank adaptation: frozen matrices plus products of small trained ones (Hu et al. 2021)."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from minilm.model.attention import Attention, MergedLinear

WEIGHT, ORIGINAL = ".parametrizations.weight.0.", ".parametrizations.weight.original"


class LowRank(nn.Module):
    """W + alpha / r B A for each matrix W of a MergedLinear: sec. 4.1. B begins at zero."""

    def __init__(self, merged: MergedLinear, rank: int, alpha: float) -> None:
        super().__init__()
        parts, device = merged.parts, merged.weight.device
        self.A = nn.Parameter(torch.empty(parts, rank, merged.in_features, device=device))
        self.B = nn.Parameter(torch.zeros(parts, merged.out_features // parts, rank, device=device))
        self.scale = alpha / rank
        for each in self.A:
            nn.init.kaiming_uniform_(each, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.B @ self.A).flatten(0, 1)


def adapt(model: nn.Module, encoder: nn.Module, rank: int, alpha: float) -> None:
    """Freeze the encoder and add a trainable LowRank to q, k and v of each of its layers. Other parts of the model are
    trained as before. Draws from torch's random state."""
    encoder.requires_grad_(False)
    for attention in (each for each in model.modules() if isinstance(each, Attention)):
        parametrize.register_parametrization(attention.qkv, "weight", LowRank(attention.qkv, rank, alpha))


def merge(model: nn.Module) -> None:
    """Add the low-rank products to the matrices, in place, which makes them plain parameters again."""
    for module in model.modules():
        if isinstance(module, MergedLinear) and parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")


def merged_state(model: nn.Module, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the state dict after `merge`, the low-rank matrices that it no longer has, by name)."""
    adapters = {name: own for name, own in state.items() if WEIGHT in name}
    plain = {name: own for name, own in state.items() if WEIGHT not in name and not name.endswith(ORIGINAL)}
    for name in (name for name in state if name.endswith(ORIGINAL)):
        of = name.removesuffix(ORIGINAL)
        added = model.get_submodule(of).parametrizations.weight[0]
        a, b = (adapters[f"{of}{WEIGHT}{letter}"].to(state[name].device) for letter in "AB")
        plain[f"{of}.weight"] = state[name] + added.scale * (b @ a).flatten(0, 1)
    return plain, adapters
