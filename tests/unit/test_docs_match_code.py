"""The pages name what the code has, and the reverse."""

from __future__ import annotations

import re
from pathlib import Path

from edge_client.recorder import Recorder
from edge_client.report import make_report
from edge_client.request import GenerationRequest
from orchestrator.link import LinkEstimate

ROOT = Path(__file__).resolve().parents[2]


def test_report_page_names_every_field() -> None:
    page = (ROOT / "docs" / "report.md").read_text()
    report = make_report(Recorder(request=GenerationRequest(prompt="x"), link=LinkEstimate()))
    missing = [name for name in report if f"`{name}" not in page and f"{name}`" not in page]
    assert missing == []


def test_every_internal_link_of_the_pages_leads_somewhere() -> None:
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "deploy").glob("*.md"),
    ]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
