"""Defaults of evaluation and prediction, where the caller says nothing.

No settings of a run: what is trained does not depend on them.
"""

EVAL_BATCH_SIZE = 32  # rows of one forward pass: twice training's, as nothing is kept for a backward
MAX_NEW_TOKENS = 128  # of a completion: a paragraph; more costs time with models that have not learned to stop
NEARLY_THE_SAME = 0.8  # Jaccard index of word triples: below it questions of one form are alike, whatever is asked
CHAT_LENGTH = 8192  # tokens of a conversation with its next answer, where the model has as many positions
RESAMPLES = 2000  # of the rows, for intervals and tests of an evaluation: their ends rest on 50 of them each
LATENCY_ROWS = 64  # rows timed one by one: a 95th percentile rests on the slowest few, with fewer on one alone
SPEED_SECONDS = 60.0  # of the grid of batch sizes and lengths: nine shapes and writing, some seconds for each
