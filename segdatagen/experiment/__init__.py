"""Does synthetic data help? One segmenter trained on several mixtures, each with several seeds, and compared.

Its parts know what is compared and how figures are drawn from it; how a segmenter is trained is the training's.
"""
