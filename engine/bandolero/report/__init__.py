"""A report as data (`build_report`); `text`, `tabular`, `html` and `figures` show it."""

from bandolero.report.build import build_report
from bandolero.report.model import Report, VariantRow

__all__ = ["Report", "VariantRow", "build_report"]
