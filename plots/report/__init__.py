"""One self-contained HTML page of runs: heatmaps whose cells open down to each needle and prediction."""

from vniah.plots.report.page import build_page

__all__ = ["build_page"]
