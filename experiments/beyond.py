"""Run the experiments of docs/findings.md beyond the paper: moved dimensions, emergence, encodings, jumps.

    python experiments/beyond.py                      # every part, in order; finished results are not run again
    python experiments/beyond.py jumps --runs runs    # some parts; --runs: where training.py keeps its checkpoints

Results are files of the library in experiments/beyond; parts that are not finished are kept in experiments/unfinished.
"""
