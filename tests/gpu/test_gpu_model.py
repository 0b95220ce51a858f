"""The model on a CUDA device: batches, attention, compiled steps, hidden waits."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion.loading import load_model
from harness.questions import distance, questions
from models import bundled_pair

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    # torch's own, where it loads its compiler, or advises tensor cores for float32.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32:UserWarning"),
]

# Of a guided prediction, relative L2: guidance multiplies a row's rounding by up to 2 * 5 - 1. In float32 too: cuDNN
# convolves on tensor cores, which round to 10 bits (TF32).
TOLERANCES = {"float32": 1e-2, "float16": 2e-2, "bfloat16": 1e-1}
BUNDLED = str(bundled_pair().cloud)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("folder", ["bundled", "tiny"])
def test_a_batch_equals_each_alone(folder: str, dtype: str, tiny_folder: Path) -> None:
    model = load_model(BUNDLED if folder == "bundled" else tiny_folder, device="cuda", dtype=dtype)
    asked = questions(model, [5.0, 1.0, 5.0, 3.0, 5.0])
    for question, answer in zip(asked, model.evaluate(asked), strict=True):
        assert answer.isfinite().all()
        assert distance(answer, model.evaluate([question])[0]) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_an_answer_is_the_processors(dtype: str) -> None:
    gpu, cpu = load_model(BUNDLED, device="cuda", dtype=dtype), load_model(BUNDLED, device="cpu")
    on_gpu = gpu.evaluate(questions(gpu, [5.0, 1.0]))
    for ours, theirs in zip(on_gpu, cpu.evaluate(questions(cpu, [5.0, 1.0])), strict=True):
        assert distance(ours, theirs) < TOLERANCES[dtype]


def test_the_network_is_channels_last() -> None:
    weights = load_model(BUNDLED, device="cuda").network.conv_in.weight  # type: ignore[attr-defined]
    assert weights.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("dtype", "kernels"),
    [
        ("float16", [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]),
        ("bfloat16", [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]),
        ("float32", [SDPBackend.EFFICIENT_ATTENTION]),
    ],
)
def test_attention_runs_on_a_fused_kernel(dtype: str, kernels: list[SDPBackend]) -> None:
    model = load_model(BUNDLED, device="cuda", dtype=dtype)
    asked = questions(model, [5.0])
    # Where none of these can run, torch raises.
    with sdpa_kernel(kernels):
        assert model.evaluate(asked)[0].isfinite().all()


def test_an_evaluation_does_not_wait_for_the_device() -> None:
    model = load_model(BUNDLED, device="cuda")
    asked = questions(model, [5.0, 5.0])
    model.evaluate(asked)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode says that it is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            model.evaluate(asked)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_compiled_equals_uncompiled_on_a_thread_of_its_own(dtype: str) -> None:
    plain, compiled = (load_model(BUNDLED, device="cuda", dtype=dtype) for _ in range(2))
    failures: list[BaseException] = []

    def compile_and_compare() -> None:
        try:
            with torch.inference_mode():
                compiled.compile((1, 2, 4, 8), on_size=lambda size, seconds: print(f"{size} rows: {seconds:.1f} s"))
                for scales in ([5.0], [1.0], [5.0, 1.0], [5.0] * 3, [5.0] * 4, [5.0] * 5, [5.0]):
                    asked = questions(plain, scales)
                    # Both before either is looked at: the second replay must not change the first answer.
                    first, second = compiled.evaluate(asked), compiled.evaluate(asked)
                    for ours, again, theirs in zip(first, second, plain.evaluate(asked), strict=True):
                        assert distance(ours, theirs) < TOLERANCES[dtype]
                        assert torch.equal(ours, again)
        except BaseException as error:
            failures.append(error)

    # As in the service: not the thread that imported the compiler, and captured graphs belong to a thread.
    thread = threading.Thread(target=compile_and_compare)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def test_a_compiled_step_is_a_replayed_graph() -> None:
    model = load_model(BUNDLED, device="cuda")
    model.compile((2,), on_size=lambda size, seconds: None)
    asked = questions(model, [5.0])
    model.evaluate(asked)
    with torch.profiler.profile() as profile:
        model.evaluate(asked)
    assert any("cudaGraphLaunch" in event.name for event in profile.events())
