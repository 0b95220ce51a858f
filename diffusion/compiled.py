"""A network compiled ahead for a few batch sizes, so that nobody who asks it waits for a compiler."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion.devices import in_memory_format, wait_for
from diffusion.weight_files import first_line

Network = Callable[..., Tensor]
"""(latents `[R, C, H, W]`, more tensors of R rows each) -> predictions of the latents' shape, float32."""

OnSize = Callable[[int, float], object]
"""Told of each batch size, in rows, and the seconds that compiling for it took."""

# A captured graph exists after the third call: the first compiles, the second fills the graphs' memory.
_WARM_UP_CALLS = 3
# torch keeps 8 versions of a function unless it is told otherwise; nobody asks for so many powers of two.
_MAX_VERSIONS = 64


def compiled_sizes(max_rows: int) -> tuple[int, ...]:
    """Return the batch sizes to compile for, in rows: the powers of two below `max_rows`, and `max_rows` itself."""
    sizes = [1]
    while 2 * sizes[-1] < max_rows:
        sizes.append(2 * sizes[-1])
    return tuple(sorted({*sizes, max_rows}))


class CompiledNetwork:
    """A network that runs compiled at one latents and embeddings shape, and as it is at others.

    A batch is padded to the next size that was compiled. Nothing is compiled after `compile`: where torch would want
    to, the network runs as it is. It belongs to the thread that calls `compile`: captured graphs are that thread's.

    Args:
        network: As it is.
        compiled: The same through `torch.compile`, for static shapes.
        sample: One row of each tensor, as they will come; the latents first.
        sizes: Batch sizes to compile for, in rows; a larger batch runs as it is.
    """

    def __init__(
        self, network: Network, compiled: Network, *, sample: tuple[Tensor, ...], sizes: Sequence[int]
    ) -> None:
        self._network = network
        self._compiled = compiled
        self._sample = sample
        self._sizes = sorted(sizes)

    def compile(self, on_size: OnSize) -> None:
        """Compile for every size, and run each until it runs as it will.

        Raises:
            ValueError: It cannot be compiled here; the text says why.
            torch.OutOfMemoryError: The device has no room for it.
        """
        # Largest first: captured graphs share their memory, and the smaller find room in what the largest took.
        for size in reversed(self._sizes):
            started = time.monotonic()
            try:
                self._warm_up(size)
            except Exception as error:  # compilers let through whatever they stumble over
                cause = getattr(error, "inner_exception", error)  # torch wraps what its backend raised
                if isinstance(cause, torch.OutOfMemoryError):
                    raise cause from error
                raise ValueError(
                    f"the model cannot be compiled here ({type(cause).__name__}: {first_line(cause)}): install what "
                    "torch.compile needs (a C++ compiler, Python's headers, on CUDA Triton), or leave out --compile"
                ) from error
            on_size(size, time.monotonic() - started)

    def _warm_up(self, size: int) -> None:
        with torch._dynamo.config.patch(recompile_limit=_MAX_VERSIONS):
            for _ in range(_WARM_UP_CALLS):
                self._run(self._sample, size)
        with torch.compiler.set_stance("fail_on_recompile"):
            self._run(self._sample, size)
        wait_for(self._sample[0].device)

    def __call__(self, *given: Tensor) -> Tensor:
        """Ask the network, see `Network`."""
        as_compiled = [each.shape[1:] for each in given] == [row.shape[1:] for row in self._sample]
        size = next((size for size in self._sizes if size >= len(given[0])), None)
        if not as_compiled or size is None:
            return self._network(*given)
        with torch.compiler.set_stance("eager_on_recompile"):
            return self._run(given, size)

    def _run(self, given: tuple[Tensor, ...], size: int) -> Tensor:
        latents, *others = (_padded(each, size) for each in given)
        rows = self._compiled(in_memory_format(latents), *others)
        # A captured graph writes its next answer where it wrote this one.
        return rows[: len(given[0])].to(torch.float32, copy=True)


def _padded(rows: Tensor, size: int) -> Tensor:
    """Return `size` rows: these, then the last of them again, whose numbers are as good as any."""
    missing = size - len(rows)
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
