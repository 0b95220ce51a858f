import ml_dtypes
import numpy as np
import pytest
import torch

from diffusion.tensors import from_array, to_array

DTYPES = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: ml_dtypes.bfloat16}


@pytest.mark.parametrize(("dtype", "numpy_dtype"), DTYPES.items(), ids=str)
def test_bits_survive_the_way_there_and_back(dtype, numpy_dtype):
    tensor = torch.randn(1, 4, 3, 5).to(dtype)
    array = to_array(tensor)
    assert array.dtype == numpy_dtype
    assert array.flags.c_contiguous
    assert torch.equal(from_array(array), tensor)


def test_strided_tensors_become_contiguous_arrays():
    tensor = torch.randn(4, 6).to(torch.bfloat16).T
    assert to_array(tensor).flags.c_contiguous
    assert torch.equal(from_array(to_array(tensor)), tensor)


@pytest.mark.parametrize("numpy_dtype", DTYPES.values(), ids=str)
def test_a_tensor_does_not_share_memory_with_the_received_bytes(numpy_dtype):
    received = np.frombuffer(np.ones(4, dtype=numpy_dtype).tobytes(), dtype=numpy_dtype)
    tensor = from_array(received)
    tensor += 1
    assert received.astype(np.float32).tolist() == [1.0] * 4


def test_inference_tensors_can_be_sent():
    with torch.inference_mode():
        tensor = torch.ones(2)
    assert to_array(tensor).tolist() == [1.0, 1.0]
