"""What every mode costs and gives on real links: `python -m bench.headline` (docs/evaluation.md).

| module | what it does |
| --- | --- |
| `runs` | makes pictures in every mode through real services, over every link |
| `figures` | times, calls, errors and accuracy with their intervals |
| `claims` | what the paper promises, and whether it holds |
| `show` | tables and plot |
| `publish` | all of that for a run, or for the part that an interrupt left |
"""
