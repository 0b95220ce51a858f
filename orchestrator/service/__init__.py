"""The orchestrator as a service: plans, replicas, estimates (docs/orchestrator.md).

What decides and remembers is pure: `library`, `estimates`, `fleet`, `planner`, `state`. What speaks gRPC is `replicas`,
`servicer` and `server`; no model is ever run here.
"""
