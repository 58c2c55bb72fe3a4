"""Embedded demo data: real crops of bundled photographs against simulated generators."""
