"""Runs: their folder, their provenance, stage-1 reuse and studies of many."""
