"""The rooms of app.py, a page in the browser: what it takes in, predicts, shows and writes. Only handlers.py,
layout.py and server.py know Gradio, which is optional (requirements-extra.txt).
"""
