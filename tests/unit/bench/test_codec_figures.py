"""What bench.codec makes of real tensors."""

from __future__ import annotations

import numpy as np
import pytest

from bench.codec.pictures import psnr_db
from bench.codec.tensors import decibels, measure_tensors, pays_below_mbit_s
from wire.codecs import LOSSLESS_CODECS
from wire.messages import Codec


def test_every_codec_is_measured_in_every_dtype_and_size() -> None:
    draw = np.random.default_rng(0).standard_normal
    rows = measure_tensors([draw((3, 4, 8, 8)).astype(np.float32) for _ in range(2)], {1, 3})
    assert len(rows) == len(Codec) * 3 * 2
    for row in rows:
        assert row["wire_bytes"] == pytest.approx(row["raw_bytes"] * row["ratio"])
        assert row["raw_bytes"] == row["num_images"] * 256 * (4 if row["dtype"] == "float32" else 2)
        assert len(row["ratio_by_step"]) == 2
        assert min(row["encode_ms"], row["decode_ms"]) > 0
        if row["codec"] in {codec.label for codec in LOSSLESS_CODECS}:
            assert row["snr_db"] is None
        else:
            assert 40 < row["snr_db"] < 50
        assert row["codec"] != "raw" or (row["ratio"], row["pays_below_mbit_s"]) == (1.0, None)


def test_a_codec_pays_where_its_bytes_take_longer_than_it_does() -> None:
    raw = {"wire_bytes": 1000.0, "encode_ms": 0.25, "decode_ms": 0.25}
    half = {"wire_bytes": 500.0, "encode_ms": 1.0, "decode_ms": 0.5}
    # 4000 bits in a millisecond.
    assert pays_below_mbit_s(half, raw) == pytest.approx(4.0)
    assert pays_below_mbit_s(half | {"wire_bytes": 1100.0}, raw) == 0.0
    assert pays_below_mbit_s(half | {"encode_ms": 0.0}, raw) is None


def test_decibels_of_pictures_and_of_no_noise() -> None:
    grey, lighter = np.full((2, 2, 3), 100, np.uint8), np.full((2, 2, 3), 110, np.uint8)
    assert psnr_db([(lighter, grey), (grey, grey)]) == pytest.approx(10 * np.log10(255**2 / 50))
    assert psnr_db([(grey, grey)]) is None
    assert decibels(100.0, 1.0) == pytest.approx(20.0)
