"""Paired tests, intervals, ROC, detection figures."""
