"""`python -m bench.pairs`: memory, bytes on the wire and warnings of the published pairs, from their configurations."""

from __future__ import annotations

import json

from bench.machine import RESULTS, machine_line, write_results
from bench.pairs.measure import measure
from bench.pairs.show import tables

_CODECS = ("zstd", "int8-block", "int8-delta")


def codec_ratios() -> dict[str, float]:
    """Return what `bench.codec` measured: wire over raw bytes of the bundled pair's float16 latents, by codec."""
    rows = json.loads((RESULTS / "codec.json").read_text())["tensors"]
    return {
        row["codec"]: row["ratio"]
        for row in rows
        if row["dtype"] == "float16" and row["num_images"] == 1 and row["codec"] in _CODECS
    }


def main() -> None:
    """Build every published model on the meta device, print the tables, write bench/results/pairs.json."""
    ratios = codec_ratios()
    results = {"codecs": ratios, **measure(ratios)}
    for name, lines in tables(results).items():
        print(f"\n{name}\n", *lines, sep="\n")
    print(f"\n{machine_line()}; wrote {write_results('pairs', results)}")


if __name__ == "__main__":
    main()
