"""Evaluation: from per-image predictions to tables, figures and reports."""
