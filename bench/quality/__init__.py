"""How good a picture is for how many cloud evaluations: `python -m bench.quality` (docs/evaluation.md).

| module | what it does |
| --- | --- |
| `cases` | one way to make pictures, and those that are compared |
| `runner` | runs a case on every prompt; what it made is kept in a folder, so that a run can be resumed |
| `choose` | parameters of the rivals, and of plans on another base, chosen on search prompts |
| `log_snr` | multistep solvers with steps even in lambda |
| `figures` | errors, intervals and accuracy of what was made |
| `targets` | what was to be reached, and whether it was |
| `show` | table, Pareto plot, contact sheet |
"""
