"""Shows a result: as text for the terminal, and as one HTML page that opens from disk and loads nothing."""

from utils.evaluation.report.page import write
from utils.evaluation.report.text import as_text

__all__ = ["as_text", "write"]
