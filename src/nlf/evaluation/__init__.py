"""The commands `nlf sample`, `score`, `perplexity` and `evaluate`, and the metrics of their samples."""
