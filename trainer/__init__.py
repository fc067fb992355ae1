"""Room `trainer/`: preference data in, candidate model folder out. Knows nothing of judges, campaigns or run folders.

The walk of one round (`round.py` tells it as a list of steps):
  settings.py    what a user may set                    data.py       prompts, responses, pairs; what is dropped and why
  model.py       models in and out, number formats      probe.py      may this model be trained on prefix trees?
  rows.py        the plan: steps, rows, trees           encode.py     a row's prompts and responses as one prefix tree
  branches.py    a tree as small attention problems     attention.py  attention over them, exact and cheap
  scorer.py      the one module that runs the model     losses.py     per-pair losses, one table
  reference.py   reference log-probs of the plan        step.py       forward and backward over one optimizer step
  training.py    all steps, log and checkpoints         optimizer.py  AdamW and its learning rate
  checkpoint.py  going on after a kill                  summary.py    what a round reports
  memory.py      large pages                            files.py      write, flush, rename
  errors.py      what a user is told

Import what you need from those files; importing the package, `settings` or `data` loads no torch.
"""
