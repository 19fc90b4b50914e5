"""Residual networks: shapes and sizes of the paper's Appendix C, and the forward pass against plain functions."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from checks import seeded

from latentbits.config import ModelConfig
from latentbits.data import form_of
from latentbits.model import build
from latentbits.nets import (
    ResidualBlock,
    ResNetDecoder,
    ResNetEncoder,
    halvings,
    has_fast_bfloat16,
    initialize_by_data,
    note_on_precision,
)
from latentbits.recipes import RECIPES
from latentbits.splits import Form

MNIST = ((1, 28, 28), (25, 50, 50))
CIFAR = ((3, 32, 32), (64, 128, 192, 256))
IMAGENET = ((3, 64, 64), (64, 128, 128, 256, 256))


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def conv(maps_in, maps_out, kernel):
    """By hand: directions, and a length and a bias for each map."""
    return maps_in * maps_out * kernel * kernel + 2 * maps_out


def block(maps_in, maps_out, strided):
    shortcut = conv(maps_in, maps_out, 1) if strided or maps_in != maps_out else 0
    return conv(maps_in, maps_out, 3) + conv(maps_out, maps_out, 3) + shortcut


def test_sizes_halve_rounded_up():
    assert halvings((28, 28), 3) == [(28, 28), (14, 14), (7, 7), (4, 4)]
    assert halvings((64, 32), 5)[-1] == (2, 1)


def test_mnists_networks_have_the_papers_shapes_and_size():
    encoder = ResNetEncoder(*MNIST, 200)
    decoder = ResNetDecoder(*MNIST, 200)
    assert encoder(torch.zeros(2, 784)).shape == (2, 200)
    assert decoder(torch.zeros(3, 2, 200)).shape == (3, 2, 784)
    down = sum(block(a, b, True) + block(b, b, False) for a, b in ((1, 25), (25, 50), (50, 50)))
    assert parameters(encoder) == down + 800 * 200 + 2 * 200  # 50 maps of 4x4
    up = sum(block(a, b, False) + block(b, b, False) for a, b in ((50, 50), (50, 50), (50, 25)))
    assert parameters(decoder) == 200 * 800 + 2 * 800 + up + conv(25, 1, 3) + 784
    sizes = []
    for module in decoder.modules():
        if isinstance(module, ResidualBlock):
            module.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[-2:])))
    decoder(torch.zeros(1, 200))
    assert sizes == [(7, 7), (7, 7), (14, 14), (14, 14), (28, 28), (28, 28)]


@pytest.mark.parametrize(("image", "maps", "repeats"), [(*CIFAR, 2), (*IMAGENET, 1)])
def test_colour_networks_have_1024_bits_without_a_fully_connected_layer(image, maps, repeats):
    encoder = ResNetEncoder(image, maps, 1024, repeats, fully_connected=False, levels=256)
    decoder = ResNetDecoder(image, maps, 1024, 100, repeats, fully_connected=False)
    D = image[0] * image[1] * image[2]
    assert encoder(torch.zeros(2, D)).shape == (2, 1024)
    assert decoder(torch.zeros(2, 1024)).shape == (2, 100, *image[1:])
    pairs = list(zip((3, *maps), maps, strict=False))
    down = sum(block(a, b, True) + (repeats - 1) * block(b, b, False) for a, b in pairs)
    assert parameters(encoder) == down
    back = list(reversed(maps))
    up = sum(block(a, b, False) + (repeats - 1) * block(b, b, False) for a, b in zip((back[0], *back), back))  # noqa: B905
    assert parameters(decoder) == up + conv(maps[0], 100, 3)


APPENDIX_C = {
    "mnist-resnet": ((25, 50, 50), 2, True, 200, 400),
    "cifar10-resnet": ((64, 128, 192, 256), 2, False, 1024, 2048),
    "imagenet64-resnet": ((64, 128, 128, 256, 256), 1, False, 1024, 2048),
}
"""Maps of each block, how often it stands there, whether a layer follows, bits and hidden units, as printed."""

BY_HAND = {
    # encoder + decoder + RBM; of cifar10-resnet the encoder has 113,152 + 525,568 + 1,243,008 + 2,263,552 in its
    # blocks, the decoder 2,361,344 + 1,488,768 + 689,408 + 193,152, and 57,800 in its last convolution
    "mnist-resnet": 351_275 + 373_036 + 80_600,
    "cifar10-resnet": 4_145_280 + 4_790_472 + 2_100_224,
    "imagenet64-resnet": 2_747_136 + 3_309_640 + 2_100_224,
    # no RBM; the encoder ends with twice as many maps, or a layer twice as wide
    "mnist-resnet-iwae": 511_675 + 373_036,
    "cifar10-resnet-iwae": 9_947_776 + 4_790_472,
    "imagenet64-resnet-iwae": 5_173_504 + 3_309_640,
}

SIZES = {
    "mnist-resnet": ([14, 14, 7, 7, 4, 4], [7, 7, 14, 14, 28, 28]),
    "cifar10-resnet": ([16, 16, 8, 8, 4, 4, 2, 2], [4, 4, 8, 8, 16, 16, 32, 32]),
    "imagenet64-resnet": ([32, 16, 8, 4, 2], [4, 8, 16, 32, 64]),
}
"""Of the images behind each block of encoder and decoder."""


@pytest.mark.parametrize("name", BY_HAND)
def test_recipes_at_the_papers_size_are_those_of_appendix_c(name):
    config, paper = RECIPES[name].make(), name.removesuffix("-iwae")
    model, form = config.model, form_of(config.data)
    described = model.maps, model.repeats, model.fully_connected, model.latent, model.hidden
    assert described == APPENDIX_C[paper]
    assert (model.components, model.encoder_maps) == (10, ())
    networks, sizes = build(model, form), []
    assert parameters(networks) == BY_HAND[name]
    for module in networks.modules():
        if isinstance(module, ResidualBlock):
            module.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    with torch.no_grad():
        networks.likelihood(networks.encode(torch.zeros(1, form.dimensions)))
    assert (sizes[: len(sizes) // 2], sizes[len(sizes) // 2 :]) == SIZES[paper]


@pytest.mark.parametrize("prior", ["rbm", "normal"])
def test_an_encoder_may_be_wider_and_deeper_than_its_decoder(prior):
    config = ModelConfig(
        network="resnet", maps=(4, 8), repeats=1, encoder_maps=(6, 8), encoder_repeats=3, fully_connected=False,
        latent=32, hidden=5, prior=prior,
    )  # fmt: skip
    model = build(config, Form(1, 8, 8))
    last = 16 if prior == "normal" else 8  # means and spreads of 2x2 places
    pairs = ((1, 6), (6, last))
    assert parameters(model.encoder) == sum(block(a, b, True) + 2 * block(b, b, False) for a, b in pairs)
    assert parameters(model.decoder) == block(8, 8, False) + block(8, 4, False) + conv(4, 1, 3) + 64
    mirrored = build(config.model_copy(update={"encoder_maps": (), "encoder_repeats": 0}), Form(1, 8, 8))
    assert parameters(mirrored.encoder) == block(1, 4, True) + block(4, last, True)


def test_an_encoder_of_other_depth_than_the_decoders_is_refused():
    with pytest.raises(ValueError, match="encoder_maps: expected as many as maps, 2, or none, got 3"):
        ModelConfig(network="resnet", maps=(4, 8), encoder_maps=(4, 8, 8))


def test_without_a_layer_behind_them_both_last_maps_are_the_latents():
    with pytest.raises(ValueError, match=r"encoder_maps: without fully_connected .* expected 8, got 16"):
        ModelConfig(network="resnet", maps=(4, 8), encoder_maps=(4, 16), fully_connected=False)
    ModelConfig(network="resnet", maps=(4, 8), encoder_maps=(4, 16))


@pytest.mark.parametrize("prior", ["rbm", "normal"])
def test_the_number_of_latents_that_is_asked_for_is_the_one_that_fits(prior):
    config = ModelConfig(network="resnet", maps=(4, 8), fully_connected=False, latent=7, hidden=5, prior=prior)
    with pytest.raises(ValueError, match=r"model.latent: expected 32, .* \(8x2x2\), got 7"):
        build(config, Form(1, 8, 8))
    build(config.model_copy(update={"latent": 32}), Form(1, 8, 8))


STRIDED = """
import torch
from latentbits.nets import ResidualBlock
torch.set_num_threads(1)
for maps, size in ((3, 64), (3, 128), (8, 128)):
    for half in (True, False):
        block = ResidualBlock(maps, 16, stride=2)
        for _ in range(3):
            x = torch.randn(8, maps, size, size).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                block(x).float().sum().backward()
        kept = [torch.randn(1000) for _ in range(1000)]
        del block, x, kept
"""


def test_gradients_of_large_images_stay_in_their_memory():
    """In a process of its own, which a write past the end kills: see ResidualBlock.forward."""
    done = subprocess.run([sys.executable, "-c", STRIDED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_latents_that_do_not_fit_the_last_map_are_refused():
    for net in (ResNetEncoder, ResNetDecoder):
        with pytest.raises(
            ValueError, match=r"expected 1024, the elements of the last feature map \(256x2x2\), got 200"
        ):
            net(*CIFAR, 200, fully_connected=False)


def plain(layer, x, stride=1):
    """A convolution whose weights are normalized here: g v / |v| for each map."""
    g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    weight = g * v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return F.conv2d(x, weight, layer.bias, stride, layer.kernel_size[0] // 2)


@pytest.mark.parametrize("enlarge", [None, (5, 7)])
def test_a_block_is_its_formula_with_its_gradient(enlarge):
    torch.manual_seed(0)
    module = ResidualBlock(3, 4, 1 if enlarge else 2, enlarge).double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=seeded(1), dtype=p.dtype))
    x = torch.randn(2, 3, 3, 4, generator=seeded(2), dtype=torch.float64)
    if enlarge:  # nearest neighbours by index
        rows = torch.arange(5) * 3 // 5
        columns = torch.arange(7) * 4 // 7
        y = x[:, :, rows][..., columns]
    else:
        y = x
    stride = 1 if enlarge else 2
    first, second = (layer for layer in module.residual if hasattr(layer, "parametrizations"))
    residual = plain(second, F.elu(plain(first, F.elu(y), stride)))
    expected = plain(module.shortcut, y, stride) + residual
    found = module(x)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=seeded(3), dtype=torch.float64)
    own = torch.autograd.grad((found * weights).sum(), list(module.parameters()))
    reference = torch.autograd.grad((expected * weights).sum(), list(module.parameters()))
    for g, r in zip(own, reference, strict=True):
        torch.testing.assert_close(g, r)


def plain_block(module, y, strided, size, raw):
    """A block by its formula, the input strided or enlarged to a size (by index: nearest neighbours)."""
    if size:
        rows, columns = (torch.arange(new) * old // new for new, old in zip(size, y.shape[2:], strict=True))
        y = y[:, :, rows][..., columns]
    first, second = (layer for layer in module.residual if hasattr(layer, "parametrizations"))
    residual = plain(second, F.elu(plain(first, y if raw else F.elu(y), 2 if strided else 1)))
    same = not strided and y.shape[1] == residual.shape[1]
    return residual + (y if same else plain(module.shortcut, y, 2 if strided else 1))


def plain_linear(layer, x):
    """As ``plain``, for a fully connected layer."""
    g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    return x @ (g * v / v.norm(dim=1, keepdim=True)).T + layer.bias


def blocks_of(net):
    return [module for module in net.modules() if isinstance(module, ResidualBlock)]


@pytest.mark.parametrize(
    ("image", "maps", "repeats", "fully_connected", "sizes"),
    [
        ((1, 28, 28), (2, 3, 3), 2, True, [(7, 7), (14, 14), (28, 28)]),
        ((3, 32, 32), (2, 3, 4, 5), 2, False, [(4, 4), (8, 8), (16, 16), (32, 32)]),
        ((3, 64, 64), (2, 3, 3, 4, 4), 1, False, [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64)]),
    ],
)
def test_whole_networks_are_their_formulas_with_their_gradients(image, maps, repeats, fully_connected, sizes):
    """The paper's three, with few maps."""
    torch.manual_seed(0)
    colour, latent = image[0] == 3, 6 if fully_connected else maps[-1] * 4
    levels, each, D = (256, 10, image[0] * image[1] * image[2]) if colour else (2, 0, 784)
    encoder = ResNetEncoder(image, maps, latent, repeats, fully_connected, levels=levels).double()
    decoder = ResNetDecoder(image, maps, latent, each, repeats, fully_connected).double()
    encoder.scale_output(1.7)
    with torch.no_grad():
        for p in (*encoder.parameters(), *decoder.parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=seeded(p.numel()), dtype=p.dtype))
    x = torch.randint(levels, (2, D), generator=seeded(1)).double()
    z = torch.bernoulli(torch.full((2, latent), 0.5, dtype=torch.float64), generator=seeded(2))

    y = (x / 127.5 - 1 if colour else 2 * x - 1).view(2, *image)
    for i, module in enumerate(blocks_of(encoder)):
        y = plain_block(module, y, i % repeats == 0, None, raw=i == 0)
    logits = 1.7 * (plain_linear(encoder.layers[-1], F.elu(y).flatten(1)) if fully_connected else y.flatten(1))

    y = plain_linear(decoder.first, z) if fully_connected else z
    y = y.view(2, maps[-1], *(4, 4) if fully_connected else (2, 2))
    for i, module in enumerate(blocks_of(decoder)):
        y = plain_block(module, y, False, None if i % repeats else sizes[i // repeats], raw=False)
    of_pixels = plain(decoder.last, F.elu(y))
    of_pixels = of_pixels if colour else of_pixels.flatten(1) + decoder.offset

    for net, found, expected in ((encoder, encoder(x), logits), (decoder, decoder(z), of_pixels)):
        torch.testing.assert_close(found, expected)
        weights = torch.randn(found.shape, generator=seeded(3), dtype=torch.float64)
        own = torch.autograd.grad((found * weights).sum(), list(net.parameters()))
        reference = torch.autograd.grad((expected * weights).sum(), list(net.parameters()))
        for (name, _), g, r in zip(net.named_parameters(), own, reference, strict=True):
            torch.testing.assert_close(g, r, msg=name)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_other_norms(norm):
    encoder = ResNetEncoder(*MNIST, 200, norm=norm)
    assert encoder(torch.zeros(4, 784)).shape == (4, 200)
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in encoder.modules()) == (norm == "batch")
    assert not any(hasattr(m, "parametrizations") for m in encoder.modules())


def test_initialization_by_data_standardizes_every_layer():
    torch.manual_seed(1)
    x = torch.bernoulli(torch.full((200, 784), 0.3), generator=seeded(4))
    encoder = ResNetEncoder(*MNIST, 200)
    out = initialize_by_data(encoder, x)
    torch.testing.assert_close(encoder(x), out, rtol=1e-3, atol=1e-3)  # and the hooks are gone
    seen = []
    for module in encoder.modules():
        if hasattr(module, "parametrizations"):
            module.register_forward_hook(lambda module, inputs, output: seen.append((module, output)))
    encoder(x)
    assert len(seen) == 3 * 5 + 1  # two blocks of two convolutions and a shortcut at each size; the last layer
    added = [block.residual[-1] for block in encoder.modules() if isinstance(block, ResidualBlock)]
    assert len(added) == 6
    for module, output in seen:
        across, spread = (0, *range(2, output.dim())), 0.2 if module in added else 1.0
        torch.testing.assert_close(output.mean(across), torch.zeros(output.shape[1]), rtol=0, atol=1e-3)
        torch.testing.assert_close(output.std(across), torch.full((output.shape[1],), spread), rtol=0, atol=1e-2)


def test_a_decoder_begins_with_nearly_the_same_output_for_all():
    torch.manual_seed(3)
    decoder = ResNetDecoder((3, 8, 8), (4, 8), 32, 100, fully_connected=False)
    out = initialize_by_data(decoder, torch.bernoulli(torch.full((300, 32), 0.5), generator=seeded(6)))
    torch.testing.assert_close(out.std((0, 2, 3)), torch.full((100,), 0.1), rtol=0, atol=1e-2)


def test_images_are_scaled_to_minus_one_and_one():
    encoder = ResNetEncoder((1, 8, 8), (2,), 32, fully_connected=False, levels=256)
    seen = []
    encoder.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    encoder(torch.tensor([[0.0, 255.0] * 32]))
    assert (float(seen[0].min()), float(seen[0].max())) == (-1.0, 1.0)


def test_without_a_fully_connected_layer_the_output_takes_every_value():
    """A last activation would keep log-odds above -1."""
    torch.manual_seed(2)
    encoder = ResNetEncoder((1, 8, 8), (4, 8), 32, fully_connected=False)
    x = torch.bernoulli(torch.full((500, 64), 0.5), generator=seeded(5))
    out = initialize_by_data(encoder, x)
    assert float(out.min().detach()) < -2
    encoder.scale_output(3.0)
    torch.testing.assert_close(encoder(x), 3 * out, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fully_connected", [True, False])
def test_bfloat16_networks_are_the_same_functions_less_exactly(fully_connected, set_fast_bfloat16):
    """Values and gradients stay near those in float32, come in float32, and are not the same ones."""
    set_fast_bfloat16(True)
    form, maps, latent = (1, 12, 12), (8, 16), 144
    x = torch.bernoulli(torch.full((64, 144), 0.4), generator=seeded(11))
    z = torch.bernoulli(torch.full((64, latent), 0.5), generator=seeded(12))
    values = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(2)
        encoder = ResNetEncoder(form, maps, latent, fully_connected=fully_connected, precision=precision)
        decoder = ResNetDecoder(form, maps, latent, fully_connected=fully_connected, precision=precision)
        for net, inputs in ((encoder, x), (decoder, z)):
            initialize_by_data(net, inputs)
            out = net(inputs)
            assert out.dtype == torch.float32
            loss = F.binary_cross_entropy_with_logits(out, x)
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])
            assert gradient.dtype == torch.float32
            values[type(net), precision] = out.detach(), gradient
    for net in (ResNetEncoder, ResNetDecoder):
        exact, rounded = (values[net, precision] for precision in ("float32", "bfloat16"))
        for one, other in zip(exact, rounded, strict=True):
            error = float((one - other).norm() / one.norm())
            assert 1e-4 < error < 0.05


def test_bfloat16_networks_work_in_float32_where_that_is_faster(set_fast_bfloat16):
    x = torch.bernoulli(torch.full((4, 144), 0.4), generator=seeded(11))
    encoder = ResNetEncoder((1, 12, 12), (8, 16), 144)
    exact = encoder(x)
    encoder.precision = "bfloat16"
    set_fast_bfloat16(False)
    assert torch.equal(encoder(x), exact)
    assert "float32" in note_on_precision("bfloat16", torch.device("cpu"))
    assert not note_on_precision("float32", torch.device("cpu"))
    set_fast_bfloat16(True)
    assert not torch.equal(encoder(x), exact)
    assert not note_on_precision("bfloat16", torch.device("cpu"))


@pytest.mark.parametrize(("capability", "present"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_older_gpus_have_no_bfloat16(monkeypatch, capability, present):
    has_fast_bfloat16.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_fast_bfloat16(torch.device("cuda", 1)) == present
    has_fast_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("able", "name", "present"),
    [
        ("amx_bf16", "Intel Xeon", True),
        ("avx512_bf16", "AMD EPYC", True),
        ("avx512_bf16", "Intel Xeon", False),
        ("avx2", "AMD EPYC", False),
    ],
)
def test_cpus_that_are_faster_in_bfloat16(monkeypatch, able, name, present):
    has_fast_bfloat16.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {able: True, "cpu_name": name})
    assert has_fast_bfloat16(torch.device("cpu")) == present
    has_fast_bfloat16.cache_clear()


def test_one_image_leaves_weights_finite():
    """Of one nothing varies: outputs are moved to 0, and not scaled."""
    torch.manual_seed(2)
    x = torch.bernoulli(torch.full((1, 784), 0.3), generator=seeded(4))
    encoder = ResNetEncoder(*MNIST, 200)
    initialize_by_data(encoder, x)
    assert all(p.isfinite().all() and p.abs().max() < 100 for p in encoder.parameters())
    torch.testing.assert_close(encoder(x), torch.zeros(1, 200), rtol=0, atol=1e-4)
