"""Report: one HTML file that explains a campaign, built from its run folder alone.

data.py reads the numbers, the figures_*.py files draw them with figure.py, marks.py and scale.py, and page.py writes
the HTML file. browser.py adds pages of samples and pairs, and compare.py puts several runs on shared axes.
"""
