"""The report as one self-contained page: ``render`` makes it from what ``report.json`` holds, of any version."""

from lora.evaluation.html.page import render as render
