"""Report: data.py reads a run folder, figures_*.py draw, page.py (compare.py for several runs) writes the HTML."""
