"""Programs that decode with the same model on the same GPU: each beside nocopy, in a process of its own.

`contender.py` says what is asked of each and how it is timed; `report.py` makes a table and a picture of it.
A contender that cannot run raises `MissingError`, and the result says so.
"""
