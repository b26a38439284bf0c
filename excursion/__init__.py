"""The whole experiment: every recipe from every kept checkpoint, evaluated and compared. `python -m excursion --help`

The way from a recipe to a verdict, and the file to open. The first part makes records, the second reads nothing but them:

    Which recipes are compared?                          recipes.py     RECIPES, a row each: add yours here
    With how many seeds, steps, answers, at what rate?   config.py      the flags, BUDGETS, RATES
    Which cells has a plan, in which order?              plan.py        a function a plan
    What are the commands of a recipe?                   cells.py       Builder: pretrain, train, evaluate
    What do --bases and --stage_flags mean?              given.py
    Who executes them, and goes on after a kill?         runner.py      known.py: leaves out what has a record already
    What do validation questions decide?                 choose.py      where a run stops, rates, checkpoints
    What is kept of an evaluation?                       collect.py     OUT/records/NAME.json.gz and NAME.cell.json

    What can be read from a record?                      records.py     Entry; a measure has a value for each question
    How are two recipes compared?                        contrasts.py   by question and seed; stats.py: with which interval
    When is a finding shown, when contradicted?          claims.py      Claim, Finding; Holm's correction
    What does the paper claim?                           findings.py    1 to 5; 6 to 8: plan_findings.py; sharpening.py
    How is it told and drawn?                            report.py      add a figure in figures.py

command.py is what a user calls: `run`, `plan`, `report`, `choose`, and `compare` (compare.py).
"""
