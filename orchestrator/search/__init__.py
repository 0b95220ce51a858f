"""The two-stage greedy search for plans, `orchestrator search`.

Decisions are here (`candidate`, `placement`, `stages`, `tail`, `pareto`): pure, over an injected screen and an injected
`evaluate`. `measurement` injects the real models; `command` wraps it all as a command.
"""
