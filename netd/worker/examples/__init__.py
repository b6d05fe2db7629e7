"""Two applications, each a file: chat.py and api.py. `python -m netd.worker.examples.chat` runs one."""
