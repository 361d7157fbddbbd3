from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedprompt.ops.layers import CrossAttention, CrossBlock, GatedFeedForward, LowRank, linear, normal, recomputed, unit
from fedprompt.seeding import stream


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def draw(*shape: int, address: str = "x") -> torch.Tensor:
    return torch.randn(shape, generator=stream(0, address))


def test_unit_has_length_one_and_leaves_zero_alone() -> None:
    x = draw(3, 5)
    assert torch.allclose(unit(x), x / x.norm(dim=-1, keepdim=True))
    assert torch.equal(unit(torch.zeros(2, 5)), torch.zeros(2, 5))


def test_draws_come_from_the_generator_alone() -> None:
    for build in (
        lambda generator: CrossBlock(8, generator=generator),
        lambda generator: nn.ParameterList([normal(3, 4, generator=generator)]),
    ):
        first, again, other = (build(stream(0, name)).state_dict() for name in ("a", "a", "b"))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)


def test_linear_draws_as_pytorch_does() -> None:
    layer = linear(100, 400, generator=stream(0, "layer"))
    assert layer.weight.abs().max() <= 0.1 and layer.bias.abs().max() <= 0.1
    assert torch.isclose(layer.weight.std(), nn.Linear(100, 400).weight.std(), rtol=0.05)
    assert torch.isclose(normal(200, 200, generator=stream(0, "p")).std(), torch.tensor(0.02), rtol=0.05)


def test_published_parameter_counts() -> None:
    with torch.device("meta"):
        fedtpg = count(CrossBlock(512)) + 4 * 512
        prompt_former = count(nn.Linear(512, 768)) + count(CrossBlock(768))
    assert (fedtpg, prompt_former) == (4_206_080, 9_845_760)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 7), st.sampled_from([1, 2, 4]))
def test_attention_equals_pytorchs(batch: int, queries: int, entries: int, heads: int) -> None:
    ours, theirs = CrossAttention(8, heads, generator=stream(0, "w")), nn.MultiheadAttention(8, heads, batch_first=True)
    names = {"in_proj_weight": "in_weight", "in_proj_bias": "in_bias", "out_proj.weight": "out.weight"}
    nn.init.normal_(ours.in_bias, generator=stream(0, "bias"))
    state = ours.state_dict()
    theirs.load_state_dict({name: state[own] for name, own in names.items()} | {"out_proj.bias": state["out.bias"]})
    x, keys, values = draw(batch, queries, 8), draw(entries, 8, address="k"), draw(entries, 8, address="v")
    expected, weights = theirs(x, keys.expand(batch, -1, -1), values.expand(batch, -1, -1))
    assert torch.allclose(ours(x, keys, values), expected, atol=1e-6)
    assert torch.allclose(ours.weights(x, keys).mean(dim=0), weights, atol=1e-6)
    assert torch.allclose(ours(x[0], keys, values), expected[0], atol=1e-6)


def test_feed_forward_gates_half_of_its_width() -> None:
    layer, x = GatedFeedForward(4, generator=stream(0, "f")), draw(3, 4)
    wide = layer.widen(layer.norm(x))
    expected = layer.narrow(wide[:, :16] * nn.functional.gelu(wide[:, 16:]))
    assert torch.equal(layer(x), expected)


def test_block_normalises_and_keeps_no_residual_of_the_queries() -> None:
    block, x, context = CrossBlock(8, generator=stream(0, "b")), draw(2, 3, 8), draw(5, 8, address="c")
    context_norm = block.norm_context(context)
    attended = block.attention(block.norm_queries(x), context_norm, context_norm)
    assert torch.equal(block(x, context), attended + block.feed_forward(attended))
    assert torch.allclose(block(7 * x + 1, 3 * context), block(x, context), atol=1e-4)


def test_block_ignores_the_order_of_its_context_and_the_rest_of_the_batch() -> None:
    block, x, context = CrossBlock(8, generator=stream(0, "b")), draw(4, 3, 8), draw(5, 8, address="c")
    assert torch.allclose(block(x, context.flip(0)), block(x, context), atol=1e-5)
    assert torch.allclose(block(x[1:2], context), block(x, context)[1:2], atol=1e-5)


def test_adapting_the_inputs_reaches_each_projection() -> None:
    block, x, context = CrossBlock(8, generator=stream(0, "b")), draw(2, 3, 8), draw(5, 8, address="c")
    plain = block(x, context)
    assert torch.equal(block(x, context, adapt=lambda q, k, v: (q, k, v)), plain)
    for part in range(3):

        def double(*inputs: torch.Tensor, part: int = part) -> tuple[torch.Tensor, ...]:
            return tuple(2 * x if place == part else x for place, x in enumerate(inputs))

        assert not torch.allclose(block(x, context, adapt=double), plain, atol=1e-4)
        same_look = torch.allclose(block.weights(x, context, adapt=double), block.weights(x, context), atol=1e-5)
        assert same_look == (part == 2)  # values are mixed, not looked at


def test_low_rank_changes_nothing_until_trained_and_then_each_input_its_own_way() -> None:
    lora, x = LowRank(8, 2, generator=stream(0, "l")), draw(3, 8)
    assert all(torch.equal(y, x) for y in lora(x, x, x))
    with torch.no_grad():
        lora.up.normal_(generator=stream(0, "up"))
    for part, y in enumerate(lora(x, x, x)):
        assert torch.allclose(y, x + x @ lora.down[part] @ lora.up[part], atol=1e-6)
    with torch.device("meta"):
        assert count(LowRank(768, 8)) == 36_864  # FedMVP's published count


def test_gradients_reach_every_parameter() -> None:
    block = CrossBlock(8, generator=stream(0, "b"))
    block(draw(2, 3, 8), draw(5, 8, address="c")).pow(2).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in block.parameters())


def test_what_is_recomputed_has_the_same_value_and_gradient() -> None:
    x, weight, runs = torch.randn(3, 4, generator=stream(0)), torch.randn(4, 5, generator=stream(1)), []

    def run(x: torch.Tensor) -> torch.Tensor:
        runs.append(torch.is_grad_enabled())
        return (x @ weight).tanh()

    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = recomputed(run, first), (second @ weight).tanh()
    assert runs == [False] and torch.equal(found, expected)
    gradients = torch.autograd.grad(found.square().sum(), first), torch.autograd.grad(expected.square().sum(), second)
    assert runs == [False, True] and torch.equal(*gradients[0], *gradients[1])
