"""The edge agent: a process that keeps the models loaded, for the commands and apps of its machine (docs/agent.md)."""
