"""Training of the models that methods need: one loop for all kinds, one module per kind.

`loop` knows steps, averages, checkpoints and logs; a kind knows its network and its loss. The same loop runs in this
process and in the workers of Ray Train.
"""
