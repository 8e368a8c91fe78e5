"""The tasks that a model does while heads are ablated."""
