"""Tiny random-weight models of every family: real classes of diffusers and transformers, real folders, no picture."""
