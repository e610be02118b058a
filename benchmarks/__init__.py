"""Benchmarks against peers and physical limits: ``python -m benchmarks [NAME ...]``.

A benchmark is a function ``(quick) -> list of rows`` in one of the modules here, listed in
``__main__``.  Within it every contender is called in turn, in one process, several times over;
medians count.  See docs/performance.md.
"""
