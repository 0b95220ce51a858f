"""How many pictures one cloud service plans: `python -m bench.throughput`."""
