"""Metrics: exact average precision per generator, bootstrap intervals, calibration."""
