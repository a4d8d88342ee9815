"""The parts of projects/Benchmarks/benchmark.py."""
