"""One script per published number."""

import os

# Read when torch is imported, by every path that is measured here: as the two services do.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
