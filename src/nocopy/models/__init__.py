"""Model files, tokenizers and chat templates.

Sessions, interfaces and the command line import this package; it imports `memory`, `tape` and `errors`.
The invariant: nothing of a model file is used before it was checked, and no file is trusted.
"""
