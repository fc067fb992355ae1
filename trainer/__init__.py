# A package of prefloop; loop/cli/start.py looks for this line.
"""Training of candidate models from preference data. Knows nothing of judges, campaigns or run folders.

The modules of a round (`round.py` lists its steps, a supervised phase first):
  settings.py     what a user may set                  data.py           prompts, responses, relations
  layout_probe.py can this model train on trees?       scorer.py         the one module that runs the model
  objective.py    the weighted sum of losses           reference.py      reference log-probs of the plan
  learner.py      everything that changes in a round   relations.py      from responses to relations
  step.py         the gradients of an optimizer step   step_rows.py      forward passes over a step's rows
  steps.py        all steps, log and checkpoints       watched_pairs.py  relations that are only watched
  optimizer.py    optimizer and learning rate          checkpoint.py     resuming after a kill
  spec.py         a round's identity, shared state     prepare.py        all that comes before the first step
  summary.py      what a round reports                 diagnostics.py    a step's numbers, their sums and means
  stops.py        when to stop a round                 memory.py         large pages, peak memory
  model.py        models from and to folders, formats  mix.py            supervised examples in every step
  candidates.py   models to choose from, mean models   score.py          log-probs outside a round
  files.py        write, flush, rename                 errors.py         the exception for users
  choices.py      optimizers and schedules by name     adapters.py       LoRA; merging.py merges it
  frozen.py       frozen weights in bf16
  layout_proof.py what probes found, kept for later    model_folder.py  checks a model folder before its use

Subpackages:
  losses/    pure functions, one table
  tree/      rows.py the plan, encode.py a row as one prefix tree, branches.py and attention.py attention over it
  parallel/  team.py who reads which rows, processes.py starting and ending them, distributed.py what they exchange
  online/    rounds whose data come in slices: sliced_round.py, and publish.py for the sampler
  reward/    reward models: round.py, with settings, model, steps and summary of its own

Import what you need from those files; importing the package, `settings` or `data` loads no torch.
"""
