"""What people look at: figures, the report, the explorer and its widgets. Reads finished runs and
draws.

Not here: anything that trains, measures, compares or writes a run (`dflib.study`); nothing below
imports from here.
"""
