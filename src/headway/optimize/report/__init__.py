"""Reports: one HTML file from evidence that works offline, with the verdict first and every sample behind it."""
