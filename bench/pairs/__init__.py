"""Published model pairs: what each end holds and what crosses the wire, from their configurations alone."""
