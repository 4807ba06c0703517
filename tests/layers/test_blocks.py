"""Attention, convolutions, patches, positions, labels and noise levels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deqgen.layers import (
    Attention,
    Block,
    LabelEmbedding,
    LabelError,
    NoiseLevelEmbedding,
    NoiseLevelError,
    PatchDecoder,
    PatchEmbedding,
    ResidualBlock,
    ResidualBlocks,
    ShapeError,
    attend,
    check_label,
    check_sigma,
    grid_side,
    initialize_transformer,
    noise_features,
    sincos_positions,
    unpatchify,
    weight_norm,
)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tokens", [7, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_routes_of_attention_agree(tokens: int, dtype: torch.dtype) -> None:
    query, key, value = (seeded(2, 3, tokens, 8, seed=s).to(dtype) for s in range(3))
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(
        attend(query, key, value).double(), exact, atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("with_row", [True, False])
@pytest.mark.parametrize("with_token", [True, False])
def test_folding_equals_adding(with_row: bool, with_token: bool) -> None:
    attention = Attention(8, 2)
    nn.init.normal_(attention.qkv.bias)
    x, row, token = seeded(3, 5, 8), seeded(3, 24, seed=1), seeded(3, 5, 24, seed=2)
    qkv = attention.qkv(x)
    if with_row:
        qkv = qkv + row[:, None]
    if with_token:
        qkv = qkv + token
    query, key, value = (p.unflatten(-1, (2, 4)).transpose(1, 2) for p in qkv.chunk(3, dim=-1))
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    if with_token:
        addend = attention.fold(row if with_row else None, token)
    else:
        addend = attention.fold(row if with_row else None)
    torch.testing.assert_close(attention(x, addend), attention.proj(mixed))


def test_under_autocast_the_addend_is_in_half_precision() -> None:
    block = Block(8, 2, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        token = F.linear(seeded(2, 5, 8), seeded(24, 8))
        addend = block.attn.fold(seeded(2, 24), token)
        assert addend.dtype == torch.bfloat16
        out = block(seeded(2, 5, 8), addend)
    assert out.dtype == torch.float32  # the residual stream keeps its precision


def test_patches_there_and_back() -> None:
    """With an identity for a map, an image survives both directions."""
    embed, decode = PatchEmbedding(3, 2, 12), PatchDecoder(12, 2, 3)
    with torch.no_grad():
        order = torch.eye(12).reshape(2, 2, 3, 12).permute(3, 2, 0, 1)  # pixels before channels
        embed.proj.weight.copy_(order)
        embed.proj.bias.zero_()
        decode.linear.weight.copy_(torch.eye(12))
        decode.linear.bias.zero_()
    image = seeded(2, 3, 8, 8)
    tokens = embed(image)
    assert tokens.shape == (2, 16, 12)
    torch.testing.assert_close(unpatchify(tokens, 2, 3), image)
    normal = F.layer_norm(tokens, (12,), eps=1e-6)
    torch.testing.assert_close(decode(tokens), unpatchify(normal, 2, 3))


def test_decoding_is_exact_under_autocast() -> None:
    decode, tokens = PatchDecoder(12, 2, 3), seeded(2, 16, 12)
    plain = decode(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(decode(tokens), plain)


@pytest.mark.parametrize(("image", "patch"), [(32, 3), (32, 0), (8, 16), (0, 1)])
def test_a_patch_that_does_not_divide(image: int, patch: int) -> None:
    with pytest.raises(ShapeError, match=f"patch_size={patch} does not divide image_size={image}"):
        grid_side(image, patch)


def test_positions() -> None:
    positions = sincos_positions(4, 16)
    assert positions.shape == (1, 16, 16)
    grid = positions.reshape(4, 4, 16)
    torch.testing.assert_close(grid[2, 3, 0], torch.tensor(3.0).sin())  # column, highest frequency
    torch.testing.assert_close(grid[2, 3, 8], torch.tensor(2.0).sin())  # row
    torch.testing.assert_close(grid[2, 3, 13], torch.tensor(2.0 / 10).cos())
    assert positions.reshape(16, 16).unique(dim=0).shape[0] == 16
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions(4, 18)


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="heads=3 does not divide width=8"):
        Attention(8, 3)


def test_labels() -> None:
    good = torch.tensor([0, 4])
    check_label(good, 5, 2)
    check_label(None, None, 2)
    check_label(torch.empty(0, dtype=torch.int64), 5, 0)
    assert LabelEmbedding(5, 12)(good).shape == (2, 12)
    for label, classes, batch, says in [
        (good, None, 2, "unconditional"),
        (None, 5, 2, "from 0 to 4; got None"),
        (good, 5, 3, r"shape \(3,\)"),
        (good[:, None], 5, 2, r"got \(2, 1\)"),
        (good, 4, 2, "holds 4, but"),
        (good - 1, 5, 2, "holds -1, but"),
    ]:
        with pytest.raises(LabelError, match=says):
            check_label(label, classes, batch)
    with pytest.raises(TypeError, match="int64"):
        check_label(good.float(), 5, 2)


def test_initial_weights_come_from_the_generator_alone() -> None:
    module = nn.ModuleList([Block(8, 2, 4.0), PatchEmbedding(3, 2, 8), LabelEmbedding(400, 24)])
    before = torch.get_rng_state()
    initialize_transformer(module, torch.Generator().manual_seed(1))
    first = [p.clone() for p in module.parameters()]
    initialize_transformer(module, torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(first, module.parameters(), strict=True))
    initialize_transformer(module, torch.Generator().manual_seed(2))
    assert not torch.equal(first[2], next(p for n, p in module.named_parameters() if "qkv.w" in n))
    assert torch.equal(before, torch.get_rng_state())
    weights = dict(module.named_parameters())
    bound = math.sqrt(6 / (8 + 24))
    assert 0.9 * bound < weights["0.attn.qkv.weight"].abs().max() <= bound
    assert weights["1.proj.weight"].abs().max() <= math.sqrt(6 / (12 + 8))
    assert weights["2.embedding_table.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["0.attn.qkv.bias"].abs().max() == 0


def test_a_row_scales_and_shifts_the_second_norm() -> None:
    block = ResidualBlock(8, 4)
    x, row = seeded(3, 8, 5, 5), seeded(3, 16, seed=1)
    hidden = block.norm2(block.conv1(F.silu(block.norm1(x))))
    scale, shift = row[:, :8, None, None], row[:, 8:, None, None]
    expected = x + block.conv2(F.silu(hidden * (1 + scale) + shift))
    torch.testing.assert_close(block(x, row), expected)
    torch.testing.assert_close(block(x), block(x, torch.zeros(3, block.row_size)))
    assert not torch.allclose(block(x), expected)


def test_blocks_take_their_rows_in_order_and_leave_the_rest() -> None:
    blocks = ResidualBlocks(2, 8, 4)
    x, rows = seeded(3, 8, 5, 5), [seeded(3, 16, seed=s) for s in range(3)]
    ahead = iter(rows)
    first, second = blocks
    torch.testing.assert_close(blocks(x, ahead), second(first(x, rows[0]), rows[1]))
    assert next(ahead) is rows[2]
    torch.testing.assert_close(blocks(x, iter(())), second(first(x)))


def test_noise_features_tell_levels_apart() -> None:
    """Cosines and sines of 256 and less times the level: unit circles, one a frequency."""
    level = torch.linspace(-1.6, 1.1, 9)
    features = noise_features(level, 6)
    frequencies = torch.tensor([256.0, 25.6, 2.56])
    torch.testing.assert_close(features[:, :3], (level[:, None] * frequencies).cos())
    torch.testing.assert_close(features[:, 3:], (level[:, None] * frequencies).sin())
    assert noise_features(level.bfloat16(), 7).shape == (9, 6)
    distance = torch.cdist(features, features) + torch.eye(9)
    assert distance.min() > 0.1


def test_a_row_for_each_noise_level() -> None:
    embedding = NoiseLevelEmbedding(6, 10)
    rows = embedding(torch.tensor([-1.0, 0.0, 1.0]))
    assert rows.shape == (3, 10)
    torch.testing.assert_close(embedding(torch.tensor([0.0])), rows[1:2])
    assert embedding.bfloat16()(torch.zeros(2)).dtype == torch.bfloat16


def test_the_values_of_sigma_are_looked_at_only_where_they_can_be() -> None:
    check_sigma(torch.ones(2), 2, wanted=True)
    check_sigma(torch.ones(0), 0, wanted=True)
    check_sigma(None, 2, wanted=False)
    check_sigma(torch.empty(2, device="meta"), 2, wanted=True)
    with pytest.raises(NoiseLevelError, match=r"it holds 0\.0"):
        check_sigma(torch.zeros(2), 2, wanted=True)


def test_norms_of_groups_begin_as_the_identity() -> None:
    norm = nn.GroupNorm(2, 4)
    nn.init.normal_(norm.weight)
    initialize_transformer(norm, torch.Generator())
    assert torch.equal(norm.weight, torch.ones(4)) and torch.equal(norm.bias, torch.zeros(4))


def test_initialising_after_normalising_is_refused() -> None:
    """It would write to the value of a function, which changes nothing."""
    block = weight_norm(Block(8, 2, 2.0), ["mlp.fc1"])
    with pytest.raises(ValueError, match=r"'mlp\.fc1' has a parametrised weight"):
        initialize_transformer(block, torch.Generator())
