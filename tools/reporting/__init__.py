"""What report.py makes its page from: runs, their images, charts, and the template."""
