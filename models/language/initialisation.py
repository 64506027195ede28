"""How a LongNet model's weights begin: MAGNETO (arXiv 2210.06423, section 2.3), by torchscale."""

from __future__ import annotations

import math

from torch import nn


def sub_layer_norm_gain(layers: int) -> float:
    """The gain of v, output, fc1 and fc2, `sqrt(ln(2 layers))`.

    Args:
        layers: N, of a decoder without encoder or an encoder without decoder; each has two
            sub-layers.

    Returns:
        The factor on Xavier's standard deviation (MAGNETO, figure 2).
    """
    return math.sqrt(math.log(2 * layers))


def initialise_projection(projection: nn.Linear, gain: float = 1.0) -> None:
    """Xavier-normal weights, `std = gain * sqrt(2 / (inputs + outputs))`, and zero biases.

    Xavier-normal as in the paper; torchscale's own code is Xavier-uniform, of the same variance.

    Args:
        projection: changed in place.
        gain: factor on the standard deviation.
    """
    nn.init.xavier_normal_(projection.weight, gain=gain)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)


def initialise_embedding(weight: nn.Parameter) -> None:
    """Normal weights with `std = embed_dim ** -0.5`, not scaled up later, as torchscale has them.

    Args:
        weight: (vocabulary, E), of tokens in or out, changed in place.
    """
    nn.init.normal_(weight, mean=0.0, std=weight.shape[1] ** -0.5)
