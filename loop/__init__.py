"""Room loop, the corridor: the order of the stages, the run folder, the engines, pairing, promotion, the command line.

It hands prompts and responses to `judges` and preference data to `trainer`; neither knows of it. Importing this package
imports no torch, transformers, vllm or datasets: what needs them runs in worker processes.
"""

__version__ = "0.1.0"
