"""Images moved by a pixel."""

import numpy as np
import torch
from checks import LIMIT, seeded

from latentbits.splits import Form, shift

FORM = Form(2, 4, 5)


def moved_by_hand(image, dy, dx):
    """An image (C, H, W) moved down by dy and right by dx, pixel by pixel."""
    out = np.zeros_like(image)
    C, H, W = image.shape
    for c in range(C):
        for i in range(H):
            for j in range(W):
                if 0 <= i - dy < H and 0 <= j - dx < W:
                    out[c, i, j] = image[c, i - dy, j - dx]
    return out


def test_images_are_moved_to_each_neighbour_equally_often():
    image = torch.arange(1, 41, dtype=torch.uint8)
    n = 9000
    found = shift(image.expand(n, -1), FORM, 0.8, seeded(0)).numpy()
    assert found.dtype == np.uint8
    every = {
        (dy, dx): moved_by_hand(image.view(2, 4, 5).numpy(), dy, dx).ravel() for dy in (-1, 0, 1) for dx in (-1, 0, 1)
    }
    counts = {way: int((found == target).all(1).sum()) for way, target in every.items()}
    assert sum(counts.values()) == n
    for way, count in counts.items():
        p = 0.2 if way == (0, 0) else 0.1
        assert abs(count - n * p) < LIMIT * np.sqrt(n * p * (1 - p))


def test_channels_move_together_and_each_image_by_itself():
    x = torch.randint(0, 256, (50, 40), generator=seeded(1), dtype=torch.uint8)
    found = shift(x, FORM, 1.0, seeded(2))
    assert torch.equal(found, shift(x, FORM, 1.0, seeded(2)))
    for before, after in zip(x.view(50, 2, 4, 5).numpy(), found.view(50, 2, 4, 5).numpy(), strict=True):
        ways = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
        assert any((moved_by_hand(before, *way) == after).all() for way in ways)


def test_without_a_probability_nothing_is_drawn():
    x, generator = torch.ones(3, 40), seeded(3)
    assert shift(x, FORM, 0.0, generator) is x
    assert torch.equal(generator.get_state(), seeded(3).get_state())
