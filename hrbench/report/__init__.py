"""Leaderboards and plots: what people look at, made from finished runs and nothing else."""

from hrbench.report.page import write_leaderboard
from hrbench.report.plots import write_plots
from hrbench.report.summary import Summary, summarise
from hrbench.report.terminal import terminal_table

__all__ = ["Summary", "summarise", "terminal_table", "write_leaderboard", "write_plots"]
