"""Lightning callbacks: progress, plots, dashboards."""
