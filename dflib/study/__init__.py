"""The study: which methods and settings there are, their runs, the engine that makes them, what the
runs say beside each other.

Not here: the detector and its techniques (`dflib`), files for other machines (`dflib.edge`),
figures and pages (`dflib.show`).
"""
