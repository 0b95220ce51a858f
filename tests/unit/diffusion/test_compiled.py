"""Padding to compiled batch sizes, and that nobody who asks waits for a compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from diffusion.compiled import CompiledNetwork, compiled_sizes
from diffusion.model import Evaluation, Model
from diffusion.noise import draw_noise

# torch's own, where it loads its compiler.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

Rows = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def _forget_compiled() -> Iterator[None]:
    with torch.inference_mode():
        yield
    torch._dynamo.reset()


def rows(count: int, *, side: int = 4, length: int = 3, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, 2, side, side, generator=generator),
        torch.rand(count, generator=generator) * 900,
        torch.randn(count, length, 5, generator=generator),
    )


def network(latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
    """Each row's answer depends on everything of that row, and on no other."""
    return latents * timesteps[:, None, None, None] + prompt_embeds.mean(dim=(1, 2))[:, None, None, None]


class Watched:
    """A network that notes the batch sizes it is asked with."""

    def __init__(self, network: Callable[..., Tensor]) -> None:
        self._network = network
        self.sizes: list[int] = []

    def __call__(self, *given: Tensor) -> Tensor:
        self.sizes.append(len(given[0]))
        return self._network(*given)


class CountingCompiler:
    """A backend of torch.compile that runs a graph as it is, and counts the graphs and their runs."""

    def __init__(self) -> None:
        self.graphs = 0
        self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        self.graphs += 1

        def run(*arguments: Tensor) -> object:
            self.runs += 1
            return graph.forward(*arguments)

        return run


@pytest.mark.parametrize(
    ("max_rows", "sizes"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12)), (32, (1, 2, 4, 8, 16, 32))],
)
def test_sizes_are_the_powers_of_two_and_the_largest_batch(max_rows, sizes):
    assert compiled_sizes(max_rows) == sizes


@pytest.mark.parametrize(("count", "padded"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6)])
def test_a_batch_is_padded_to_the_next_size_and_answers_only_for_its_own_rows(count, padded):
    compiled = Watched(network)
    ours = CompiledNetwork(network, compiled, sample=rows(1), sizes=compiled_sizes(6))
    given = rows(count, seed=1)
    assert torch.equal(ours(*given), network(*given))
    assert compiled.sizes == [padded]


@pytest.mark.parametrize("given", [rows(7), rows(2, side=5), rows(2, length=4)], ids=["more rows", "size", "prompt"])
def test_what_was_not_compiled_for_runs_as_it_is(given):
    compiled, plain = Watched(network), Watched(network)
    ours = CompiledNetwork(plain, compiled, sample=rows(1), sizes=compiled_sizes(6))
    assert torch.equal(ours(*given), network(*given))
    assert plain.sizes == [len(given[0])]
    assert not compiled.sizes


def test_an_answer_outlives_the_next_question_where_a_captured_graph_writes_both_to_one_place():
    place = torch.empty(4, 2, 4, 4)

    def captured(*given: Tensor) -> Tensor:
        return place.copy_(network(*given))

    ours = CompiledNetwork(network, captured, sample=rows(1), sizes=(4,))
    first, second = rows(4, seed=1), rows(3, seed=2)
    answers = ours(*first), ours(*second)
    assert torch.equal(answers[0], network(*first))
    assert torch.equal(answers[1], network(*second))


def test_sizes_are_compiled_largest_first_and_told():
    compiler, told = CountingCompiler(), []
    compiled = torch.compile(network, backend=compiler, dynamic=False, fullgraph=True)
    CompiledNetwork(network, compiled, sample=rows(1), sizes=compiled_sizes(6)).compile(
        lambda size, seconds: told.append((size, seconds > 0))
    )
    assert told == [(6, True), (4, True), (2, True), (1, True)]
    assert compiler.graphs == 4


def test_more_sizes_than_torch_keeps_by_itself_stay_compiled():
    compiler = CountingCompiler()
    compiled = torch.compile(network, backend=compiler, dynamic=False, fullgraph=True)
    ours = CompiledNetwork(network, compiled, sample=rows(1), sizes=compiled_sizes(1024))
    ours.compile(lambda size, seconds: None)
    assert compiler.graphs == 11
    before = compiler.runs
    for size in compiled_sizes(1024):
        ours(*rows(size))
    assert (compiler.graphs, compiler.runs - before) == (11, 11)


def test_nothing_is_compiled_for_a_question_even_where_torch_would():
    compiler = CountingCompiler()
    compiled = torch.compile(network, backend=compiler, dynamic=False, fullgraph=True)
    ours = CompiledNetwork(network, compiled, sample=rows(1), sizes=(1, 2, 4))
    ours.compile(lambda size, seconds: None)
    ours(*rows(3))
    graphs, runs = compiler.graphs, compiler.runs
    latents, timesteps, prompt_embeds = rows(3)
    given = (latents.double(), timesteps, prompt_embeds)
    assert torch.equal(ours(*given), network(*given).float())
    assert (compiler.graphs, compiler.runs) == (graphs, runs)


def test_a_compiler_that_does_not_work_is_one_line_with_the_way_out():
    def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        raise RuntimeError("no C++ compiler\nand much more")

    compiled = torch.compile(network, backend=broken, dynamic=False, fullgraph=True)
    with pytest.raises(ValueError, match=r"RuntimeError: no C\+\+ compiler\).*leave out --compile") as caught:
        CompiledNetwork(network, compiled, sample=rows(1), sizes=(1,)).compile(lambda size, seconds: None)
    assert "\n" not in str(caught.value)


def test_no_room_on_the_device_is_no_broken_compiler():
    def too_large(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        raise torch.OutOfMemoryError("no room")

    compiled = torch.compile(network, backend=too_large, dynamic=False, fullgraph=True)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        CompiledNetwork(network, compiled, sample=rows(1), sizes=(1,)).compile(lambda size, seconds: None)


def evaluations(model: Model, guidance_scales: list[float]) -> list[Evaluation]:
    shape = model.latents_shape(0, 0, 1)
    return [
        Evaluation(
            latents=draw_noise(shape, index),
            timestep=100.0 * index + 1,
            conditioning=model.encode_prompt("a cat", "a dog", guided=scale > 1.0),
            guidance_scale=scale,
        )
        for index, scale in enumerate(guidance_scales)
    ]


def test_a_padded_batch_of_the_real_network_equals_each_alone(cloud):
    sample = (draw_noise((1, 4, 16, 16), 1), torch.ones(1), cloud.encode_prompt("", guided=False).prompt_embeds)

    def ask(latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        return cloud.network(latents, timesteps, encoder_hidden_states=prompt_embeds).sample

    padded = Watched(ask)
    ours = CompiledNetwork(ask, padded, sample=sample, sizes=compiled_sizes(8))
    latents = draw_noise((5, 4, 16, 16), 2)
    timesteps, prompt_embeds = torch.tensor([1.0, 300.0, 500.0, 700.0, 999.0]), sample[2].expand(5, -1, -1)
    together = ours(latents, timesteps, prompt_embeds)
    assert padded.sizes == [8]
    for index in range(5):
        alone = ask(latents[index : index + 1], timesteps[index : index + 1], sample[2])
        assert torch.allclose(together[index : index + 1], alone, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_model_equals_the_uncompiled_one(changed_copy):
    from diffusion.loading import load_model

    folder = changed_copy()
    plain, compiled = load_model(folder, device="cpu"), load_model(folder, device="cpu")
    told: list[int] = []
    compiled.compile((2, 4), on_size=lambda size, seconds: told.append(size))
    assert told == [4, 2]
    for scales in ([7.5], [1.0], [7.5, 1.0], [7.5, 3.0]):
        questions = evaluations(plain, scales)
        for ours, theirs in zip(compiled.evaluate(questions), plain.evaluate(questions), strict=True):
            # Guidance multiplies the rounding of a forward whose sums are added in another order.
            assert torch.allclose(ours, theirs, atol=1e-4)
