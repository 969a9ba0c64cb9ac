"""Language model sessions: a KV cache in shared pages, and what one does with it.

Imports models, tape, device and memory; interfaces, serve and the command line import it.
The invariant: everything that a session remembers lies in its region, in a layout that is the same on every
device; a session object can be made again from the region and the tokens.
"""
