"""The edge: a finished run as files for another machine, a page for the browser, predictions on single images.

Not here: how models are made (`dflib`), which runs there are (`dflib.study`), anything drawn from results (`dflib.show`).
"""
