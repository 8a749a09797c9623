"""`segdatagen report`: what a run made as a page for a browser, from what is stored.

Everything here reads the run and writes files of its own; it does not know how samples are made.
"""
