"""How much an edge lets be under way, and wait: it does so, and what it costs is predicted from that."""

from __future__ import annotations

CREDIT_WINDOW = 2
"""Latents under way at a time where nothing but latents is streamed: one being sent, one waiting."""

SHADOW_WINDOW = 8
"""The same for the shadow: it wants the tensors of every real step, and there may be that many in one round trip."""

MAX_WAITING_STEPS = 8
"""Steps that a slow shadow lets wait before it skips any.

Enough for the cloud's first steps to wait until a cold edge has encoded the prompt; and the most that the edge may
still have to see when the cloud has stopped, before anybody leads.
"""
