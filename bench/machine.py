"""What every published number carries: the machine, the date, the command."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"


def facts() -> dict[str, Any]:
    """Return the machine, the date and the command of this run."""
    script = Path(sys.argv[0])
    if script.stem == "__main__":  # a folder is named, not the module in it
        script = script.parent
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "num_cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m", f"{script.parent.name}.{script.stem}", *sys.argv[1:]]),
    }


def machine_line() -> str:
    """Return the machine and the date in words, as tables and plots carry them."""
    machine = facts()
    return f"{machine['cpu']}, {machine['num_cpus']} CPUs, {machine['date']}"


def write_results(name: str, results: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write `results` with the machine beside them; return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": facts(), **results}, indent=1) + "\n")
    return path
