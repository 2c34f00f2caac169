"""The commands that measure: sample, score, perplexity, evaluate; and the metrics."""
