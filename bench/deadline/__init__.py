"""What a generation is predicted to take against what it takes: `python -m bench.deadline` (docs/deadline.md).

| module | what it does |
| --- | --- |
| `runs` | generations on every link, each predicted and then run |
| `figures` | medians and errors |
| `show` | table and plot |
"""
