"""The edge: a finished run as files for other machines, a page for the browser, single images.

Not here: how models are made (dflib), which runs there are (dflib.study), figures (dflib.show).
"""
