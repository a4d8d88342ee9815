"""What visualize.py draws on: splits of a data set and videos."""
