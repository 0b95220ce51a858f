"""How many devices a fleet of edges needs, by simulation: `python -m bench.capacity`."""
