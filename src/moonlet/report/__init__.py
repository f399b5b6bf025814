"""The report of a run: one self-contained page made from its JSON files and its metrics log."""

from moonlet.report.page import write_report

__all__ = ["write_report"]
