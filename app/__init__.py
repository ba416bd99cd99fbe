"""A page in the browser that predicts, compares and lights maps. Only page.py and server.py need Gradio, which is
optional (requirements-extra.txt).
"""
