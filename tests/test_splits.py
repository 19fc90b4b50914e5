"""Images moved by a pixel, and bent."""

import numpy as np
import pytest
import torch
from checks import LIMIT, seeded

from latentbits.splits import DataError, Form, distort, flip, make_splits, shift

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


def test_images_are_mirrored_as_often_as_is_stated():
    x = torch.arange(1, 41, dtype=torch.uint8).expand(4000, -1)
    found = flip(x, FORM, 0.3, seeded(8)).view(-1, 2, 4, 5).numpy()
    image = x[0].view(2, 4, 5).numpy()
    mirror = np.stack([[list(reversed(row)) for row in plane] for plane in image])
    as_it_is, mirrored = ((found == target).all((1, 2, 3)).sum() for target in (image, mirror))
    assert as_it_is + mirrored == 4000
    assert abs(mirrored - 1200) < LIMIT * np.sqrt(4000 * 0.3 * 0.7)


def test_without_a_probability_nothing_is_drawn():
    x, generator = torch.ones(3, 40), seeded(3)
    assert flip(x, FORM, 0.0, generator) is x
    assert shift(x, FORM, 0.0, generator) is x
    assert torch.equal(generator.get_state(), seeded(3).get_state())
    assert distort(x, FORM, 0.0, generator) is x
    assert torch.equal(generator.get_state(), seeded(3).get_state())


H = W = 28


def displacements(amplitude, n, seed):
    """What ``distort`` moved, down and right (n, H, W), read off images whose pixels name their places; NaN outside."""
    names = torch.arange(1, H * W + 1, dtype=torch.float32).expand(n, -1)
    found = distort(names, Form(1, H, W), amplitude, seeded(seed)).view(n, H, W).numpy().astype(int)
    rows, columns = np.divmod(found - 1, W)
    down, right = rows - np.arange(H)[:, None], columns - np.arange(W)
    return np.where(found, down, np.nan), np.where(found, right, np.nan)


def test_images_are_bent_by_as_much_as_is_stated():
    """A grid point moves with variance amplitude^2 / 3; between four of them, the mean of four, a quarter of it.

    Rounding to pixels adds 1/12, and about half of what would come from outside of the edge is not seen.
    """
    n, amplitude = 20_000, 3.0
    down, right = displacements(amplitude, n, 4)
    for way in (down, right):
        middle = way[:, 13:15, 13:15].mean((1, 2))  # four pixels around the middle, which none of the points is
        assert abs(middle.mean()) < LIMIT * middle.std() / np.sqrt(n)
        one = way[:, 13, 13]
        variance, kurtosis = one.var(), (one**4).mean() / one.var() ** 2
        expected = amplitude**2 / 3 * ((14 / 27) ** 2 + (13 / 27) ** 2) ** 2 + 1 / 12
        assert abs(variance - expected) < LIMIT * expected * np.sqrt((kurtosis - 1) / n)
    product = down[:, 13, 13] * right[:, 13, 13]  # the two directions know nothing of each other
    assert abs(product.mean()) < LIMIT * product.std() / np.sqrt(n)
    corner = down[:, 0, 0]
    assert 0.45 < np.isnan(corner).mean() < 0.7  # from outside, up or to the left


def test_what_is_bent_stays_smooth_and_comes_from_inside():
    down, right = displacements(3.0, 500, 5)
    for way in (down, right):
        steps = np.abs(np.diff(way, axis=1)), np.abs(np.diff(way, axis=2))
        assert max(np.nanmax(step) for step in steps) <= 3  # between neighbours; points 9 pixels apart differ by tens
        assert np.nanmean(np.concatenate([step.ravel() for step in steps])) < 0.25
        assert np.nanmax(np.abs(way)) > 5
    assert not np.array_equal(down[0], down[1], equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_channels_bend_together(dtype):
    plane = torch.randint(1, 256, (20, 1, 8, 9), generator=seeded(6)).to(dtype)
    x = plane.expand(-1, 3, -1, -1).reshape(20, -1)
    found = distort(x, Form(3, 8, 9, 256), 2.0, seeded(7))
    assert found.dtype == dtype
    channels = found.view(20, 3, -1)
    assert torch.equal(channels[:, 0], channels[:, 1])
    assert torch.equal(channels[:, 0], channels[:, 2])
    assert not torch.equal(found, x)
    assert torch.equal(found, distort(x, Form(3, 8, 9, 256), 2.0, seeded(7)))


def test_tensors_and_booleans_are_data_too():
    form, rng = Form(1, 2, 3), np.random.default_rng(0)
    arrays = [rng.integers(0, 2, (n, 6), np.uint8) for n in (4, 3, 2)]
    made = make_splits("mine", arrays, form)
    for parts in ([torch.from_numpy(a) for a in arrays], [a.astype(bool) for a in arrays]):
        again = make_splits("mine", parts, form)
        assert again.checksum == made.checksum
        assert torch.equal(again.train, made.train)
    with pytest.raises(DataError, match=r"expected form as latentbits\.Form"):
        make_splits("mine", arrays, (1, 2, 3))
