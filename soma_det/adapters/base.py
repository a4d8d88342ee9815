"""What every method of adapting a model has: a config that puts it in, and layers that say what they train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

from torch import Tensor, nn

Config = TypeVar("Config", bound="type[AdapterConfig]")
ADAPTERS: dict[str, type[AdapterConfig]] = {}
Blocks = Sequence[int] | None  # indices of blocks; None for a model without any


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of one method; subclasses add theirs as fields and check them when they are made.

    Attributes:
        name: what MODEL.ADAPTER.NAME says.
        summary: one line, for help texts.
        takes_blocks: whether the choice of blocks matters.
        takes_targets: whether the method adapts linear layers, which can be chosen.
        why_not_mergeable: the reason in a sentence; empty if the method can be merged.
        auxiliary_loss: whether training adds a loss of its own, see :func:`soma_det.adapters.pop_auxiliary_losses`.
        block_step: by default every ``block_step``-th block is adapted, counted down from the last.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    takes_blocks: ClassVar[bool] = True
    takes_targets: ClassVar[bool] = False
    why_not_mergeable: ClassVar[str] = ""
    auxiliary_loss: ClassVar[bool] = False
    block_step: ClassVar[int] = 1

    def usual_blocks(self, first: int, last: int) -> list[int]:
        """The blocks that the method adapts by default, of those from ``first`` to ``last``, both included."""
        return list(range(last, first - 1, -self.block_step))[::-1]

    def inject(self, model: nn.Module, blocks: Blocks, targets: Sequence[str], initialize: bool) -> list[str]:
        """Change the model in place and return the names of the parameters to train; see :func:`adapt`."""
        raise NotImplementedError


@dataclass(frozen=True)
class LowRankConfig(AdapterConfig):
    """What the methods that change linear layers by a product of low rank share.

    Attributes:
        rank: of each change.
        train_bias: train the biases of the adapted layers.
    """

    takes_targets: ClassVar[bool] = True

    rank: int = 16
    train_bias: bool = True

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"MODEL.ADAPTER.RANK is {self.rank}: give 1 or more.")


class LowRankForm(NamedTuple):
    """A weight as residual + B A: (out, in), (parts, rank, in) and (parts, out / parts, rank)."""

    residual: Tensor
    a: Tensor
    b: Tensor


class AdapterLayer(nn.Module):
    """A module that a method has put into a model.

    Attributes:
        config: the settings with which it was made.
    """

    config: AdapterConfig

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """What trains of this layer, by its name within the layer."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def merged(self) -> nn.Module:
        """A new plain module that computes the same; the layer is left as it was.

        Raises:
            ValueError: there is none; the message says why.
        """
        raise ValueError(f"{self.config.name!r} cannot be merged: {self.config.why_not_mergeable}")

    def low_rank_form(self) -> LowRankForm | None:
        """The adapted weight as residual + B A; None where the method is not of that form."""
        return None


def register(config: Config) -> Config:
    """Make a config class known under its name."""
    ADAPTERS[config.name] = config
    return config


def require(condition: bool, message: str) -> None:
    """Raise a ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def describe_adapters() -> str:
    """One line for each method: its name and what it trains."""
    return "\n".join(f"    {name:<12}{config.summary}" for name, config in sorted(ADAPTERS.items()))
