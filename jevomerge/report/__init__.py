"""The report of a run: one page that needs nothing but a browser."""

from jevomerge.report.page import write_report as write_report
