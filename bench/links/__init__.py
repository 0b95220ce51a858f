"""What a link makes of a generation, and how old latents get on it: `python -m bench.links` (docs/evaluation.md).

| module | what it does |
| --- | --- |
| `runs` | generations and bare sessions through real services, over every link |
| `figures` | time splits, ages, ratios, the bar |
| `show` | tables and plot |
"""
