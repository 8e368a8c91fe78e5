"""What the model is asked to do while heads are ablated."""
