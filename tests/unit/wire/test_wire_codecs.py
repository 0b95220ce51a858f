import threading
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zstandard
from wire_samples import gaussian

from wire import codecs
from wire.codecs import BLOCK_ELEMENTS, CODECS, LOSSLESS_CODECS, Int8Block, Raw, Zstd
from wire.errors import CorruptTensor
from wire.messages import Codec, DType
from wire.tensors import numpy_dtype

FLOAT32, FLOAT16, BFLOAT16 = (numpy_dtype(dtype) for dtype in DType)
MIB = 2**20


def flat(dtype, num_elements, scale=1.0, seed=0):
    return (gaussian(shape=(num_elements,), seed=seed) * scale).astype(numpy_dtype(dtype))


def test_registry_covers_the_enum_exactly():
    assert set(CODECS) == set(Codec)
    assert {Codec.RAW, Codec.ZSTD} == LOSSLESS_CODECS


@pytest.mark.parametrize("codec", sorted(LOSSLESS_CODECS, key=lambda codec: codec.value))
@pytest.mark.parametrize("dtype", DType)
@pytest.mark.parametrize("num_elements", [1, 63, 64, 1000])
def test_lossless_codecs_are_bit_exact(codec, dtype, num_elements):
    elements = flat(dtype, num_elements)
    elements[0] = -0.0
    encoded = CODECS[codec].encode(elements)
    decoded = CODECS[codec].decode(encoded.data, encoded.scales, elements.dtype, num_elements)
    assert decoded.dtype == elements.dtype
    assert decoded.tobytes() == elements.tobytes() == encoded.decoded.tobytes()
    assert decoded.flags.writeable


def test_raw_is_little_endian():
    assert Raw().encode(np.array([1.0], dtype=FLOAT32)).data == bytes.fromhex("0000803f")
    assert Raw().encode(np.array([1.0], dtype=FLOAT16)).data == bytes.fromhex("003c")
    assert Raw().encode(np.array([1.0], dtype=BFLOAT16)).data == bytes.fromhex("803f")


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\0" * 9])
def test_raw_refuses_another_length(data):
    with pytest.raises(CorruptTensor, match="8 bytes arrived as"):
        Raw().decode(data, b"", FLOAT32, 2)


@pytest.mark.parametrize("codec", [Raw(), Zstd()])
def test_scales_have_no_place_in_lossless_codecs(codec):
    encoded = codec.encode(flat(DType.FLOAT32, 4))
    with pytest.raises(CorruptTensor, match="4 bytes of scales"):
        codec.decode(encoded.data, b"\0" * 4, FLOAT32, 4)


# ----------------------------------------------------------------------------------------- zstd


def test_zstd_shuffle_finds_the_exponents():
    # systems.md: 1.09-1.20x for float16 and 1.30-1.51x for bfloat16 on Gaussian numbers.
    ratios = {}
    for dtype in DType:
        elements = flat(dtype, 4 * 64 * 64)
        ratios[dtype] = elements.nbytes / len(Zstd().encode(elements).data)
    assert ratios[DType.FLOAT16] > 1.05
    assert ratios[DType.BFLOAT16] > 1.25
    assert ratios[DType.FLOAT32] > 1.05


def test_zstd_bomb_is_refused_before_it_is_inflated():
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(64 * MIB))
    assert len(bomb) < 8192
    tracemalloc.start()
    try:
        with pytest.raises(CorruptTensor, match="declares 67108864 bytes for 1024"):
            Zstd().decode(bomb, b"", FLOAT32, 256)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        # The control: this is what inflating it looks like to tracemalloc.
        zstandard.ZstdDecompressor().decompress(bomb)
        inflated_peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 * 1024
    assert inflated_peak_bytes >= 64 * MIB


def test_zstd_frame_that_lies_about_its_size_is_refused_within_bounds():
    bomb = bytearray(zstandard.ZstdCompressor(level=19).compress(bytes(64 * MIB)))
    assert bomb[4] >> 6 == 2, "a content size of 4 bytes"
    size_offset = 5 if bomb[4] & 0x20 else 6  # single-segment frames have no window byte
    assert int.from_bytes(bomb[size_offset : size_offset + 4], "little") == 64 * MIB
    bomb[size_offset : size_offset + 4] = (1024).to_bytes(4, "little")
    tracemalloc.start()
    try:
        with pytest.raises(CorruptTensor, match="does not decompress"):
            Zstd().decode(bytes(bomb), b"", FLOAT32, 256)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_zstd_frame_without_a_declared_size_is_refused():
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1024))
    with pytest.raises(CorruptTensor, match="declares"):
        Zstd().decode(frame, b"", FLOAT32, 256)


@pytest.mark.parametrize("damage", ["truncated", "extra byte", "second frame", "empty", "noise", "skippable"])
def test_zstd_takes_one_whole_frame_and_nothing_else(damage):
    frame = Zstd().encode(flat(DType.FLOAT32, 256)).data
    data = {
        "truncated": frame[:-1],
        "extra byte": frame + b"\0",
        "second frame": frame + frame,
        "empty": b"",
        "noise": bytes(range(256)),
        "skippable": bytes.fromhex("502a4d18") + (1024).to_bytes(4, "little") + bytes(1024),
    }[damage]
    with pytest.raises(CorruptTensor):
        Zstd().decode(data, b"", FLOAT32, 256)


def test_zstd_contexts_are_one_per_thread():
    zstd = Zstd()
    barrier = threading.Barrier(4)

    def work(seed):
        barrier.wait()
        for number in range(50):
            elements = flat(DType.FLOAT16, 4096, seed=seed * 100 + number)
            encoded = zstd.encode(elements)
            assert zstd.decode(encoded.data, b"", FLOAT16, 4096).tobytes() == elements.tobytes()
        return id(codecs._contexts.compressor)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(work, range(4)))) == 4


# ----------------------------------------------------------------------------------- int8-block


@pytest.mark.parametrize("dtype", DType)
@pytest.mark.parametrize("num_elements", [1, 63, 64, 65, 4096])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 500.0])
def test_int8_error_is_half_a_scale_step(dtype, num_elements, scale):
    elements = flat(dtype, num_elements, scale)
    encoded = Int8Block().encode(elements)
    decoded = Int8Block().decode(encoded.data, encoded.scales, elements.dtype, num_elements)
    blocks = np.zeros(-(-num_elements // BLOCK_ELEMENTS) * BLOCK_ELEMENTS)
    blocks[:num_elements] = elements
    half_step = np.repeat(np.abs(blocks.reshape(-1, BLOCK_ELEMENTS)).max(axis=1) / 254, BLOCK_ELEMENTS)[:num_elements]
    # Half a unit in the last place of the dtype (float16 has subnormals here), and of the float32 product.
    mantissa_bits = {DType.FLOAT32: 23, DType.FLOAT16: 10, DType.BFLOAT16: 7}[dtype]
    exact = decoded.astype(np.float64)
    rounding = np.abs(exact) * 2.0**-mantissa_bits + 2.0**-24 * (dtype is DType.FLOAT16)
    assert (np.abs(exact - elements.astype(np.float64)) <= half_step * (1 + 1e-5) + rounding).all()


@pytest.mark.parametrize("dtype", DType)
def test_int8_encoder_knows_what_the_decoder_makes(dtype):
    elements = flat(dtype, 1000, 30.0)
    encoded = Int8Block().encode(elements)
    decoded = Int8Block().decode(encoded.data, encoded.scales, elements.dtype, 1000)
    assert encoded.decoded.dtype == decoded.dtype == elements.dtype
    assert zlib.crc32(encoded.decoded.tobytes()) == zlib.crc32(decoded.tobytes())


def test_int8_signal_to_noise_on_gaussian_numbers():
    elements = flat(DType.FLOAT32, 65536).astype(np.float64)
    decoded = Int8Block().encode(elements.astype(np.float32)).decoded.astype(np.float64)
    snr_db = 10 * np.log10((elements**2).sum() / ((elements - decoded) ** 2).sum())
    assert 43.5 < snr_db < 46.0


def test_int8_halves_float16():
    elements = flat(DType.FLOAT16, 16384)
    encoded = Int8Block().encode(elements)
    assert elements.nbytes / (len(encoded.data) + len(encoded.scales)) == pytest.approx(1.88, abs=0.01)


def test_int8_zeros_stay_zeros():
    encoded = Int8Block().encode(np.zeros(100, dtype=np.float32))
    assert not encoded.decoded.any()
    assert len(encoded.scales) == 8


def test_int8_blocks_too_small_for_a_normal_scale_are_zeros():
    elements = np.repeat(np.float32([1.4e-36, 1.6e-36]), BLOCK_ELEMENTS)
    decoded = Int8Block().encode(elements).decoded
    assert not decoded[:BLOCK_ELEMENTS].any()
    np.testing.assert_allclose(decoded[BLOCK_ELEMENTS:], elements[BLOCK_ELEMENTS:], rtol=1e-6)


@pytest.mark.parametrize("dtype", DType)
@pytest.mark.parametrize("extreme", ["largest", "smallest normal", "smallest subnormal"])
def test_int8_survives_the_ends_of_the_range(dtype, extreme):
    info = {DType.FLOAT32: (3.4028235e38, 1.1754944e-38, 1e-45), DType.FLOAT16: (65504.0, 6.1035e-5, 6e-8)}
    values = info.get(dtype, (3.3895e38, 1.1754944e-38, 9.2e-41))
    value = values[["largest", "smallest normal", "smallest subnormal"].index(extreme)]
    elements = np.array([value, -value, value / 2, 0.0] * 20, dtype=np.float64).astype(numpy_dtype(dtype))
    decoded = Int8Block().encode(elements).decoded.astype(np.float64)
    assert np.isfinite(decoded).all()
    # 1.5e-36: the documented flush to zero.
    np.testing.assert_allclose(decoded, elements.astype(np.float64), rtol=2 / 254, atol=max(1.5e-36, value / 100))


@pytest.mark.parametrize(
    ("data", "scales", "text"),
    [
        (bytes(99), bytes(8), "100 elements arrived with 99"),
        (bytes(101), bytes(8), "100 elements arrived with 101"),
        (bytes(100), bytes(4), "needs 2 float32 scales, not 4 bytes"),
        (bytes(100), bytes(12), "needs 2 float32 scales, not 12 bytes"),
        (bytes(100), b"", "needs 2 float32 scales, not 0 bytes"),
        (bytes(100), np.array([1.0, np.nan], dtype="<f4").tobytes(), "negative or not finite"),
        (bytes(100), np.array([np.inf, 1.0], dtype="<f4").tobytes(), "negative or not finite"),
        (bytes(100), np.array([1.0, -1.0], dtype="<f4").tobytes(), "negative or not finite"),
        # A signalling NaN, at which numpy likes to warn.
        (bytes(100), np.array([0x7F800001, 0], dtype="<u4").tobytes(), "negative or not finite"),
    ],
)
def test_int8_refuses_wrong_lengths_and_scales(data, scales, text):
    with pytest.raises(CorruptTensor, match=text):
        Int8Block().decode(data, scales, FLOAT32, 100)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16])
def test_int8_scales_that_overflow_make_no_warning(dtype):
    decoded = Int8Block().decode(b"\x7f\x81", np.array([3e38], dtype="<f4").tobytes(), dtype, 2)
    assert not np.isfinite(decoded).any()
