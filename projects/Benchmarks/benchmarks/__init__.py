"""Speed and memory of adapters, of data loading and of the metrics."""
