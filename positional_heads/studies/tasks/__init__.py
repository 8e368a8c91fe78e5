"""Tasks that are measured with heads ablated. A new task goes into recall.py; the list of all is evaluate.TASKS."""
