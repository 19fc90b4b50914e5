r"""What training watches its prior for: an RBM that explodes, and chains that are stuck.

For data under a prior of entropy :math:`H`, between 0 and M log 2, and chains in equilibrium,

.. math:: \mathbb{E}_\text{data} F - \mathbb{E}_\text{chains} F = \text{NLL} - H

so a gap beyond M log 2 is a prior that describes the data worse than fair coins do, and one below -M log 2 is of
chains that have nothing to do with it. Ten times that is called an explosion. Steps of healthy runs, down to RBMs of
one bit, stay within M log 2 (docs/reliability.md).

Chains that mix between two looks differ from what they were in as many bits as two of them differ from each other,
and two of them in about as many as two data. Stuck is less than a twentieth of either; healthy chains, down to twenty
of a single bit, keep above a third.
"""

import math

from torch import Tensor

EXPLOSION = 10.0
STUCK = 1 / 20
FEWEST_CHAINS, FEWEST_BITS = 10, 0.25


def most_gap(visible: int) -> float:
    """The free-energy gap, in nats either way, beyond which a prior over so many bits has exploded."""
    return EXPLOSION * visible * math.log(2)


def differing(means: Tensor) -> float:
    """Number of bits in which two independent draws with means (M,) differ, on average."""
    return float((2 * means * (1 - means)).sum())


def stuck(z: Tensor, before: Tensor | None, data: Tensor | None) -> str | None:
    """What is wrong with chains, or None.

    Arguments:
        z: Their bits, with shape (N, M).
        before: Their bits at the last look, with the same shape, if there was one.
        data: Means of the data's bits, with shape (M,), if they are known.
    """
    if len(z) < FEWEST_CHAINS:
        return None
    among = differing(z.mean(0))
    if data is not None and (expected := differing(data)) >= FEWEST_BITS and among < STUCK * expected:
        return f"the chains are all alike: two differ in {among:.2g} bits, two data in {expected:.2g}"
    if before is not None and among >= FEWEST_BITS:
        moved = float((z != before).sum(1, dtype=z.dtype).mean())
        if moved < STUCK * among:
            return f"the chains hardly move: {moved:.2g} bits in an epoch, while two of them differ in {among:.2g}"
    return None
